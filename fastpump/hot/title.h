/* What ps(1) and top(1) call a process: its command line and its short name.
 *
 * The kernel shows a command line out of the process's own memory, from where its arguments were
 * put at the start (/proc/self/stat tells) to their end; but only up to the first NUL if their last
 * byte is none, which is how it knows a title (get_mm_cmdline() in fs/proc/base.c). Python has
 * copied its arguments long before.
 */
#ifndef FASTPUMP_TITLE_H
#define FASTPUMP_TITLE_H

#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

/* The place of the arguments; 0 if it cannot be had. Fields 48 and 49 of proc_pid_stat(5); the
 * second one, in parentheses, may hold any characters. */
static size_t title_room(char **start)
{
    char line[2048];
    unsigned long first = 0, end = 0;
    const char *field;
    size_t length;
    FILE *stat = fopen("/proc/self/stat", "re");
    if (stat == NULL)
        return 0;
    length = fread(line, 1, sizeof line - 1, stat);
    fclose(stat);
    line[length] = 0;
    field = strrchr(line, ')');
    for (int number = 2; field != NULL && number < 48; number++)
        field = strchr(field + 1, ' ');
    if (field == NULL || sscanf(field, " %lu %lu", &first, &end) != 2 || first == 0 || end <= first)
        return 0;
    *start = (char *)first;
    return end - first;
}

/* Both names; what does not fit is cut off (the short one: 15 bytes). */
static void title_set(const char *title, const char *short_name)
{
    char *start = NULL;
    size_t room = title_room(&start), length = strlen(title);
    prctl(PR_SET_NAME, short_name, 0, 0, 0);
    if (room < 2)
        return;
    if (length > room - 2)
        length = room - 2;
    memcpy(start, title, length);
    memset(start + length, 0, room - length - 1);
    start[room - 1] = ' ';
}
#endif
