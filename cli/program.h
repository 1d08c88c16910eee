/* Whether a program can be given a preload library, from what its file says. */
#ifndef CLI_PROGRAM_H
#define CLI_PROGRAM_H

#include <stdbool.h>
#include <stddef.h>

enum program_verdict {
  PROGRAM_FINE,
  PROGRAM_NOT_FOUND,
  PROGRAM_NOT_EXECUTABLE,
  PROGRAM_OUT_OF_REACH, /* it would run, but without the library */
};

#define PROGRAM_WHY_LEN 512

/* Looks for the program as execvp(3) does and at its file; for a script, at its interpreter.  why: one sentence, if not fine. */
enum program_verdict program_check(const char *name, char why[PROGRAM_WHY_LEN]);

#endif
