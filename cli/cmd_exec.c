/* `uvirt exec`: runs a program with libuvirt-preload.so in it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/program.h"

/* As env(1) and timeout(1): what ends without the program having run. */
enum { EXIT_OURS = 125, EXIT_CANNOT_RUN = 126, EXIT_NOT_FOUND = 127 };

#define PRELOAD_NAME "libuvirt-preload.so"

struct exec_options {
  bool help, force;
  const char *log;
  char **command;
};

static void print_help(void) {
  puts("Usage: uvirt exec [OPTIONS] [--] PROGRAM [ARGUMENTS]\n\n"
       "Runs a program that finds a working /dev/kvm, on a machine with or without one, and so do its children.\n\n"
       "  --log FILE              append what the library has to say to FILE: refused requests and warnings\n"
       "  --force                 run PROGRAM though it cannot be reached itself; its children may be\n"
       "  --help                  print this\n\n"
       "The program must be an x86-64 program that is linked dynamically with glibc, as Debian's are.  Static programs,\n"
       "programs in Go and those with set-user-ID are refused: they would not see the library.\n\n"
       "Exit codes: the program's own; 125 uvirt exec failed, 126 the program cannot be run or reached,\n"
       "127 it is not found.");
}

bool exec_find_preload(char *path) {
  static const char *const places[] = {"../src/preload", INSTALLED_LIBRARIES};
  char self[PATH_MAX], candidate[2 * PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
  if (n <= 0) return false;
  self[n] = 0;
  *strrchr(self, '/') = 0;
  for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
    snprintf(candidate, sizeof(candidate), "%s/%s/" PRELOAD_NAME, self, places[i]);
    if (access(candidate, R_OK) == 0 && realpath(candidate, path)) return true;
  }
  return false;
}

/* The loader separates the variable's entries by these and knows no way to quote them. */
static bool set_preload(const char *path) {
  const char *old = getenv("LD_PRELOAD");
  char *value;
  if (strpbrk(path, ": ")) {
    complain("the path of the library, %s, contains a colon or a space, which LD_PRELOAD cannot hold", path);
    return false;
  }
  if (old && strstr(old, path)) return true;
  if (asprintf(&value, "%s%s%s", path, old && *old ? ":" : "", old && *old ? old : "") < 0) return false;
  bool ok = setenv("LD_PRELOAD", value, 1) == 0;
  free(value);
  return ok;
}

/* The program may change its directory. */
static bool set_log(const char *file) {
  char path[PATH_MAX];
  int fd = open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (fd >= 0) close(fd);
  if (fd >= 0 && realpath(file, path) && setenv("UVIRT_LOG", path, 1) == 0) return true;
  complain("the log file %s cannot be written: %s", file, strerror(errno));
  return false;
}

static bool parse(int argc, char **argv, struct exec_options *o) {
  int i = 1;
  for (; i < argc && argv[i][0] == '-'; i++) {
    const char *arg = argv[i];
    if (strcmp(arg, "--") == 0) {
      i++;
      break;
    } else if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
      o->help = true;
      return true;
    } else if (strcmp(arg, "--force") == 0) {
      o->force = true;
    } else if (strncmp(arg, "--log=", 6) == 0) {
      o->log = arg + 6;
    } else if (strcmp(arg, "--log") == 0 && i + 1 < argc) {
      o->log = argv[++i];
    } else {
      complain(strcmp(arg, "--log") == 0 ? "the option '%s' needs a value: FILE"
                                         : "'%s' is not an option; `uvirt exec --help` lists them",
               arg);
      return false;
    }
  }
  o->command = argv + i;
  if (i < argc) return true;
  complain("there is no program to run; `uvirt exec --help` explains");
  return false;
}

/* 0, or the exit code after saying why not. */
static int check(const struct exec_options *o) {
  char why[PROGRAM_WHY_LEN];
  switch (program_check(o->command[0], why)) {
  case PROGRAM_FINE:
    return 0;
  case PROGRAM_NOT_FOUND:
    complain("%s", why);
    return EXIT_NOT_FOUND;
  case PROGRAM_OUT_OF_REACH:
    if (o->force) return 0;
    break;
  default:
    break;
  }
  complain("%s", why);
  return EXIT_CANNOT_RUN;
}

int cmd_exec(int argc, char **argv) {
  struct exec_options o = {0};
  char preload[PATH_MAX];
  if (!parse(argc, argv, &o)) return EXIT_OURS;
  if (o.help) {
    print_help();
    return 0;
  }
  int code = check(&o);
  if (code) return code;
  if (!exec_find_preload(preload)) {
    complain(PRELOAD_NAME " is not beside the command, neither as built nor as installed");
    return EXIT_OURS;
  }
  if (!set_preload(preload) || (o.log && !set_log(o.log))) return EXIT_OURS;
  execvp(o.command[0], o.command);
  int err = errno;
  complain("%s cannot be executed: %s", o.command[0], strerror(err));
  return err == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_RUN;
}
