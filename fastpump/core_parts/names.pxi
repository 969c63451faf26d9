# What Python and the operator call the verdicts, counters and events of hot/: {value: name}.

include "enum_names.pxi"            # VERDICT_NAMES and so on as the enums have them; by setup.py

VERDICT_NAMES = {value: name for value, name in VERDICT_NAMES.items() if name != "PASS"}
COUNTER_NAMES = {value: name.lower() for value, name in COUNTER_NAMES.items()}
EVENT_NAMES = {value: name.removeprefix("EVENT_").lower() for value, name in EVENT_NAMES.items()}
ADMISSION_NAMES = {value: name for value, name in ADMISSION_NAMES.items()
                   if not name.startswith("ADMIT_")}
