/* What `uvirt run` prints about a machine and about the end of its run. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include "vmm/machine/machine.h"

/* --dry-run: the machine, on stdout. */
void report_machine(const struct machine_config *config, const struct vmm *vmm, bool json);
/* How the run ended, on stderr. */
void report_end(const struct machine_config *config, const struct machine_end *end, bool json);

#endif
