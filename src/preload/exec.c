/* New programs keep the library: /dev/kvm is there for them too, whatever environment they are given.
 *
 * The functions that take an environment get one with our entry in LD_PRELOAD if it has none.  They may be called in a vfork
 * child or in a forked one of a program with threads, so memory comes from the stack.
 */
#include <alloca.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "preload/preload.h"

#define VARIABLE "LD_PRELOAD="

static char self[4096]; /* our path as the program was given it; empty: it was not LD_PRELOAD that brought us */

__attribute__((constructor)) static void find_self(void) {
  Dl_info info;
  const char *preload = getenv("LD_PRELOAD");
  if (!preload || !dladdr(&self, &info) || !info.dli_fname || strlen(info.dli_fname) >= sizeof(self)) return;
  if (strstr(preload, info.dli_fname)) strcpy(self, info.dli_fname);
}

struct environment {
  size_t n;    /* entries */
  size_t at;   /* LD_PRELOAD's, or n */
  size_t size; /* of the new entry; 0: nothing to do */
};

static struct environment look(char *const envp[]) {
  struct environment e = {0};
  bool found = false;
  if (!self[0] || !envp) return e;
  for (; envp[e.n]; e.n++) {
    if (found || strncmp(envp[e.n], VARIABLE, strlen(VARIABLE))) continue;
    found = true;
    e.at = e.n;
    if (strstr(envp[e.n], self)) return (struct environment){0};
  }
  if (!found) e.at = e.n;
  e.size = strlen(VARIABLE) + strlen(self) + 1 + (found ? strlen(envp[e.at]) - strlen(VARIABLE) + 1 : 0);
  return e;
}

/* Copies envp to out[n + 2], with our entry in text[size]. */
static char **amend(const struct environment *e, char *const envp[], char **out, char *text) {
  memcpy(out, envp, e->n * sizeof(*out));
  out[e->n] = out[e->n + 1] = NULL;
  strcpy(text, VARIABLE);
  strcat(text, self);
  if (e->at < e->n && envp[e->at][strlen(VARIABLE)]) {
    strcat(text, ":");
    strcat(text, envp[e->at] + strlen(VARIABLE));
  }
  out[e->at] = text;
  return out;
}

/* Declares env, which is envp or an amended copy on the caller's stack. */
#define AMENDED(env, envp)                                                                                                       \
  struct environment e_ = look(envp);                                                                                            \
  char **array_ = e_.size ? alloca((e_.n + 2) * sizeof(char *)) : NULL;                                                          \
  char *text_ = e_.size ? alloca(e_.size) : NULL;                                                                                \
  char **env = e_.size ? amend(&e_, envp, array_, text_) : (char **)envp

INTERPOSE int execve(const char *path, char *const argv[], char *const envp[]) {
  AMENDED(env, envp);
  return REAL(execve)(path, argv, env);
}
INTERPOSE int execvpe(const char *file, char *const argv[], char *const envp[]) {
  AMENDED(env, envp);
  return REAL(execvpe)(file, argv, env);
}
INTERPOSE int execveat(int dirfd, const char *path, char *const argv[], char *const envp[], int flags) {
  AMENDED(env, envp);
  return REAL(execveat)(dirfd, path, argv, env, flags);
}
INTERPOSE int fexecve(int fd, char *const argv[], char *const envp[]) {
  AMENDED(env, envp);
  return REAL(fexecve)(fd, argv, env);
}
INTERPOSE int execv(const char *path, char *const argv[]) {
  return execve(path, argv, environ);
}
INTERPOSE int execvp(const char *file, char *const argv[]) {
  return execvpe(file, argv, environ);
}

INTERPOSE int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attr,
                          char *const argv[], char *const envp[]) {
  AMENDED(env, envp);
  return REAL(posix_spawn)(pid, path, actions, attr, argv, env);
}
INTERPOSE int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attr,
                           char *const argv[], char *const envp[]) {
  AMENDED(env, envp);
  return REAL(posix_spawnp)(pid, file, actions, attr, argv, env);
}

/* ---- arguments one by one ---- */

static size_t count_list(const char *first, va_list ap) {
  size_t n = 0;
  for (const char *a = first; a; a = va_arg(ap, const char *)) n++;
  return n;
}

/* Leaves *ap behind the list's NULL. */
static void collect_list(char **argv, const char *first, va_list *ap) {
  size_t n = 0;
  for (const char *a = first; a; a = va_arg(*ap, const char *)) argv[n++] = (char *)a;
  argv[n] = NULL;
}

/* Declares argv, the arguments from `first` on, on the caller's stack; ap is begun and stands behind their NULL. */
#define LIST(argv, ap, first)                                                                                                    \
  va_list ap;                                                                                                                    \
  va_start(ap, first);                                                                                                           \
  size_t n_ = count_list(first, ap);                                                                                             \
  va_end(ap);                                                                                                                    \
  char **argv = alloca((n_ + 1) * sizeof(char *));                                                                               \
  va_start(ap, first);                                                                                                           \
  collect_list(argv, first, &ap)

INTERPOSE int execl(const char *path, const char *first, ...) {
  LIST(argv, ap, first);
  va_end(ap);
  return execve(path, argv, environ);
}

INTERPOSE int execlp(const char *file, const char *first, ...) {
  LIST(argv, ap, first);
  va_end(ap);
  return execvpe(file, argv, environ);
}

INTERPOSE int execle(const char *path, const char *first, ...) {
  LIST(argv, ap, first);
  char *const *envp = va_arg(ap, char *const *);
  va_end(ap);
  return execve(path, argv, envp);
}
