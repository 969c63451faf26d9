/* Confine a worker: no capabilities, no core dump, and only the system calls of the
 * pump. Everything else answers EPERM.
 *
 * The list follows the comments in linux.pxd: the reads, writes, sends, receives and
 * waits and pauses of the loop; getrandom for flood ids; clock_gettime for clock sources
 * that the vDSO cannot read; exit.
 */
#ifndef FASTPUMP_SANDBOX_H
#define FASTPUMP_SANDBOX_H

#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define SANDBOX_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define SANDBOX_ARCH AUDIT_ARCH_AARCH64
#endif

/* 0 or -errno. */
static int sandbox_drop_capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2];
    /* The bounding set needs CAP_SETPCAP; without it there is nothing to bound. */
    for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
        prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    memset(none, 0, sizeof none);
    return syscall(SYS_capset, &header, none) == 0 ? 0 : -errno;
}

/* 0 or -errno; -ENOSYS where the filter is not written for the processor. */
static int sandbox_filter_syscalls(void)
{
#ifdef SANDBOX_ARCH
#define SANDBOX_ALLOW(name)                                        \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##name, 0, 1),        \
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SANDBOX_ARCH, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        SANDBOX_ALLOW(read),
        SANDBOX_ALLOW(write),
        SANDBOX_ALLOW(writev),
        SANDBOX_ALLOW(sendmmsg),
        SANDBOX_ALLOW(recvmmsg),
#ifdef __NR_epoll_wait
        SANDBOX_ALLOW(epoll_wait),
#endif
        SANDBOX_ALLOW(epoll_pwait),
        SANDBOX_ALLOW(clock_gettime),
        SANDBOX_ALLOW(clock_nanosleep),
        SANDBOX_ALLOW(getrandom),
        SANDBOX_ALLOW(restart_syscall),
        SANDBOX_ALLOW(rt_sigreturn),
        SANDBOX_ALLOW(exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    };
#undef SANDBOX_ALLOW
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -errno;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0 ? 0 : -errno;
#else
    return -ENOSYS;
#endif
}

/* Die with the supervisor; allow no core dump and no tracing. */
static int sandbox_tie_to_parent(int parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        return -errno;
    return getppid() == parent ? 0 : -ESRCH; /* it died before the first call */
}
#endif
