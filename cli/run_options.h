/* The options of `uvirt run`. */
#ifndef CLI_RUN_OPTIONS_H
#define CLI_RUN_OPTIONS_H

#include "vmm/machine/machine.h"

enum accel_choice { ACCEL_AUTO, ACCEL_SOFT, ACCEL_HOST };

struct run_options {
  struct machine_config machine;
  enum accel_choice accel;
  bool help, dry_run, json;
  const char *engine_option;      /* one of those that only uvirt's own engine knows, as given; NULL: none */
  char *owned[MACHINE_MAX_DISKS]; /* copies of disk paths without their ",ro" */
};

/* Reads the command line.  0, or -1 after saying on stderr what is wrong. */
int run_options_parse(int argc, char **argv, struct run_options *o);
void run_options_free(struct run_options *o);
void run_options_help(void);

#endif
