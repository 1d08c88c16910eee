/* The command line's commands and what they share. */
#ifndef CLI_H
#define CLI_H

#include <stdbool.h>
#include <stdio.h>

/* argv[0] is the command's name.  Returns the process's exit code (enum vmm_end). */
int cmd_run(int argc, char **argv);
int cmd_stat(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_exec(int argc, char **argv);
int cmd_version(int argc, char **argv);

/* libuvirt-preload.so, beside the command as built or as installed; path has room for PATH_MAX bytes. */
bool exec_find_preload(char *path);

/* Prints "uvirt: ..." on stderr. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Whether one of the arguments asks for help. */
bool asks_for_help(int argc, char **argv);

#endif
