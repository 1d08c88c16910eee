/* The machine as its owner (the command line) sees it: described, made, run, destroyed. */
#ifndef VMM_MACHINE_H
#define VMM_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/vmm.h"

struct vmm_accel;

enum { MACHINE_ERR_LEN = 512, MACHINE_MAX_DISKS = 16, MACHINE_MAX_NETS = 8 };

struct machine_disk {
  const char *path;
  bool readonly;
};

/* What to build.  The strings must outlive the machine. */
struct machine_config {
  const struct vmm_accel *accel;
  const char *kernel; /* required */
  const char *initrd; /* NULL: none */
  const char *append; /* kernel command line */
  uint64_t memory;    /* bytes */
  unsigned cpus;
  const char *cpu; /* "MODEL[,+f,-f][,vendor=intel|amd]" */
  struct machine_disk disks[MACHINE_MAX_DISKS];
  unsigned disk_count;
  const char *nets[MACHINE_MAX_NETS]; /* specs as virtio_net_create() takes them */
  unsigned net_count;
  const char *console;        /* of COM1 */
  const char *virtio_console; /* of hvc0; NULL: no such device */
  bool rng, debug_exit, no_reboot;
};

/* How a run ended. */
struct machine_end {
  int code; /* enum vmm_end */
  char reason[256];
  uint64_t run_ns;
  unsigned resets;
  uint64_t exits[64]; /* KVM exits to the VMM by reason, over all vCPUs */
};

/* Builds everything up to the first instruction.  NULL and one sentence in err; nothing is left behind. */
struct vmm *machine_create(const struct machine_config *config, char err[MACHINE_ERR_LEN]);
/* Runs until the machine ends.  SIGINT, SIGTERM and SIGHUP must be blocked in the process: they end the machine. */
void machine_run(struct vmm *vmm, struct machine_end *end);
void machine_destroy(struct vmm *vmm);

/* What was loaded ("Linux bzImage 6.1 ..."). */
const char *machine_kernel_text(const struct vmm *vmm);

/* "poweroff", "reset", ... for an end code. */
const char *machine_end_name(int code);

#endif
