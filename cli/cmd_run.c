/* `uvirt run`: boots a virtual machine. */
#include <malloc.h>
#include <signal.h>
#include <stddef.h>

#include "cli/cli.h"
#include "cli/report.h"
#include "cli/run_options.h"
#include "vmm/backend/console.h"
#include "vmm/kvm.h"

static const struct vmm_accel *choose_accel(enum accel_choice choice) {
  if (choice == ACCEL_SOFT) return &vmm_accel_soft;
  if (choice == ACCEL_HOST) return &vmm_accel_host;
  const char *why;
  const struct vmm_accel *accel = vmm_accel_auto(&why);
  complain("accelerator '%s': %s", accel->name, why);
  return accel;
}

/* These end the machine in order, through its event loop; a peer that closes its end of stdout must not kill the process. */
static void prepare_signals(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  sigprocmask(SIG_BLOCK, &set, NULL);
  signal(SIGPIPE, SIG_IGN);
}

static const struct vmm_accel *accel_for(const struct run_options *o) {
  const struct vmm_accel *accel = choose_accel(o->accel);
  if (o->engine_option && accel != &vmm_accel_soft) complain("%s has no meaning with the machine's own /dev/kvm", o->engine_option);
  return accel;
}

/* Large blocks (the kernel, the initrd) get pages of their own and give them back.  Left to itself, malloc begins to keep them with the first one freed. */
static void prepare_memory(void) {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
}

static int run_machine(struct run_options *o) {
  char err[MACHINE_ERR_LEN];
  struct machine_end end;
  prepare_memory();
  o->machine.accel = accel_for(o);
  prepare_signals();
  struct vmm *vmm = machine_create(&o->machine, err);
  if (!vmm) {
    complain("%s", err);
    return VMM_END_ERROR;
  }
  machine_run(vmm, &end);
  machine_destroy(vmm);
  report_end(&o->machine, &end, o->json);
  return end.code;
}

/* Builds it all but for the consoles, which would take the terminal or write a file: those are only checked. */
static int describe_machine(struct run_options *o) {
  char err[MACHINE_ERR_LEN];
  if (console_check(o->machine.console, err) || (o->machine.virtio_console && console_check(o->machine.virtio_console, err))) {
    complain("%s", err);
    return VMM_END_ERROR;
  }
  o->machine.accel = accel_for(o);
  struct machine_config quiet = o->machine;
  quiet.console = "none";
  if (quiet.virtio_console) quiet.virtio_console = "none";
  struct vmm *vmm = machine_create(&quiet, err);
  if (!vmm) {
    complain("%s", err);
    return VMM_END_ERROR;
  }
  report_machine(&o->machine, vmm, o->json);
  machine_destroy(vmm);
  return 0;
}

int cmd_run(int argc, char **argv) {
  struct run_options options;
  int code = VMM_END_USAGE;
  if (run_options_parse(argc, argv, &options) == 0) {
    if (options.help || argc == 1) {
      run_options_help();
      code = options.help ? 0 : VMM_END_USAGE;
    } else {
      code = options.dry_run ? describe_machine(&options) : run_machine(&options);
    }
  }
  run_options_free(&options);
  return code;
}
