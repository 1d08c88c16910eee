/* `uvirt exec`: runs a program with libuvirt-preload.so in it. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

/* As env(1) and timeout(1). */
enum { EXIT_OURS = 125, EXIT_CANNOT_RUN = 126, EXIT_NOT_FOUND = 127 };

#define PRELOAD_NAME "libuvirt-preload.so"

/* The library, beside the command: as built or as installed. */
static bool find_preload(char path[PATH_MAX]) {
  static const char *const places[] = {"../src/preload", INSTALLED_LIBRARIES};
  char self[PATH_MAX], candidate[PATH_MAX + 64];
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

static bool set_preload(const char *path) {
  const char *old = getenv("LD_PRELOAD");
  char *value;
  if (asprintf(&value, "%s%s%s", path, old && *old ? ":" : "", old && *old ? old : "") < 0) return false;
  bool ok = setenv("LD_PRELOAD", value, 1) == 0;
  free(value);
  return ok;
}

static void print_help(void) {
  puts("Usage: uvirt exec [--] PROGRAM [ARGUMENTS]\n\nRuns a program that finds a working /dev/kvm, on a machine with or without "
       "one.");
}

int cmd_exec(int argc, char **argv) {
  int i = 1;
  if (i < argc && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
    print_help();
    return 0;
  }
  if (i < argc && strcmp(argv[i], "--") == 0)
    i++;
  else if (i < argc && argv[i][0] == '-') {
    complain("'%s' is not an option; `uvirt exec --help` lists them", argv[i]);
    return EXIT_OURS;
  }
  if (i >= argc) {
    complain("there is no program to run; `uvirt exec --help` explains");
    return EXIT_OURS;
  }
  char preload[PATH_MAX];
  if (!find_preload(preload) || !set_preload(preload)) {
    complain("cannot find " PRELOAD_NAME);
    return EXIT_OURS;
  }
  execvp(argv[i], argv + i);
  int err = errno;
  complain("%s: %s", argv[i], strerror(err));
  return err == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_RUN;
}
