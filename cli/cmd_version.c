/* `uvirt version`. */
#include <stdio.h>

#include "cli/cli.h"
#include "uvirt.h"
#include "vmm/vmm.h"

int cmd_version(int argc, char **argv) {
  if (asks_for_help(argc, argv)) {
    puts("Usage: uvirt version\n\nPrints the version.");
    return 0;
  }
  if (argc > 1) {
    complain("`uvirt version` takes no arguments");
    return VMM_END_USAGE;
  }
  printf("uvirt %s\n", uvirt_version());
  return 0;
}
