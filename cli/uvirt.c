/* The command `uvirt`: a table of sub-commands. */
#include <stdarg.h>
#include <string.h>

#include "cli/cli.h"
#include "vmm/vmm.h"

static const struct command {
  const char *name, *purpose;
  int (*run)(int argc, char **argv);
} commands[] = {
    {"run", "boot a virtual machine from a kernel file", cmd_run},
    {"exec", "run a program with a /dev/kvm of its own", cmd_exec},
    {"stat", "show what running virtual machines do", cmd_stat},
    {"doctor", "say what this host offers and what it lacks", cmd_doctor},
    {"version", "say which version this is", cmd_version},
};

void complain(const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  fputs("uvirt: ", stderr);
  vfprintf(stderr, fmt, ap);
  fputc('\n', stderr);
  va_end(ap);
}

bool asks_for_help(int argc, char **argv) {
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
  return false;
}

static void print_usage(FILE *out) {
  fputs("uvirt - Linux virtualization in user space: /dev/kvm without a kernel module\n\nUsage: uvirt COMMAND [OPTIONS]\n\n",
        out);
  for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
    fprintf(out, "  %-10s%s\n", commands[i].name, commands[i].purpose);
  fputs("\n`uvirt COMMAND --help` explains a command.  For example:\n\n"
        "  uvirt run --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'\n",
        out);
}

int main(int argc, char **argv) {
  if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
    print_usage(stdout);
    return argc < 2 ? VMM_END_USAGE : 0;
  }
  if (strcmp(argv[1], "--version") == 0) return cmd_version(1, argv + 1);
  for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
    if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
  complain("'%s' is no command; `uvirt --help` lists them", argv[1]);
  return VMM_END_USAGE;
}
