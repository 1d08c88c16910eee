/* Looks at a program's file: the ELF headers, or the first line of a script. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "cli/program.h"

#define OWN_LOADER  "ld-linux-x86-64.so.2" /* the C library that the preload library is made for */
#define MAX_SCRIPTS 5                      /* interpreters that are scripts themselves (Linux: fs/exec.c) */

struct look {
  char *why;
  unsigned scripts;
};

static enum program_verdict look_at(const char *path, struct look *l);

__attribute__((format(printf, 3, 4))) static enum program_verdict say(struct look *l, enum program_verdict v, const char *fmt,
                                                                      ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(l->why, PROGRAM_WHY_LEN, fmt, ap);
  va_end(ap);
  return v;
}

#define OUT_OF_REACH(l, path, what) say(l, PROGRAM_OUT_OF_REACH, "%s %s", path, what)

/* ---- ELF ---- */

static bool read_at(int fd, void *to, size_t size, uint64_t at) {
  return at <= INT64_MAX && pread(fd, to, size, (off_t)at) == (ssize_t)size;
}

/* The loader's name; false: none, so the program is static. */
static bool read_loader(int fd, const Elf64_Ehdr *e, char loader[PATH_MAX]) {
  for (unsigned i = 0; i < e->e_phnum; i++) {
    Elf64_Phdr p;
    if (!read_at(fd, &p, sizeof(p), e->e_phoff + (uint64_t)i * e->e_phentsize)) return false;
    if (p.p_type != PT_INTERP || p.p_filesz == 0 || p.p_filesz > PATH_MAX) continue;
    if (!read_at(fd, loader, p.p_filesz, p.p_offset)) return false;
    loader[p.p_filesz - 1] = 0;
    return true;
  }
  return false;
}

static bool has_section(int fd, const Elf64_Ehdr *e, const char *name) {
  Elf64_Shdr names, s;
  char text[64];
  if (!read_at(fd, &names, sizeof(names), e->e_shoff + (uint64_t)e->e_shstrndx * e->e_shentsize)) return false;
  for (unsigned i = 0; i < e->e_shnum; i++) {
    if (!read_at(fd, &s, sizeof(s), e->e_shoff + (uint64_t)i * e->e_shentsize)) return false;
    if (s.sh_name < names.sh_size && read_at(fd, text, strlen(name) + 1, names.sh_offset + s.sh_name) && !strcmp(text, name))
      return true;
  }
  return false;
}

static enum program_verdict look_at_elf(int fd, const char *path, const Elf64_Ehdr *e, struct look *l) {
  char loader[PATH_MAX];
  if (e->e_ident[EI_CLASS] != ELFCLASS64 || e->e_machine != EM_X86_64)
    return OUT_OF_REACH(l, path, "is not an x86-64 program: the library cannot be loaded into it");
  bool has_loader = read_loader(fd, e, loader);
  if (has_section(fd, e, ".go.buildinfo"))
    return OUT_OF_REACH(l, path, "is a Go program, which makes its system calls itself: a preload library does not see them");
  if (!has_loader) return OUT_OF_REACH(l, path, "is statically linked: a preload library cannot be loaded into it");
  const char *base = strrchr(loader, '/');
  if (strcmp(base ? base + 1 : loader, OWN_LOADER) != 0)
    return OUT_OF_REACH(l, path, "uses another C library than glibc: the library cannot be loaded into it");
  return PROGRAM_FINE;
}

/* ---- scripts ---- */

static enum program_verdict find(const char *name, char path[PATH_MAX], struct look *l);

static enum program_verdict look_at_named(const char *name, struct look *l) {
  char path[PATH_MAX];
  enum program_verdict v = find(name, path, l);
  return v ? v : look_at(path, l);
}

/* "#!/usr/bin/env [-S] [NAME=VALUE]... PROGRAM": the program is what matters. */
static enum program_verdict look_at_env(const char *words, struct look *l) {
  char copy[256], *save;
  snprintf(copy, sizeof(copy), "%s", words);
  for (char *w = strtok_r(copy, " \t", &save); w; w = strtok_r(NULL, " \t", &save)) {
    if (!strncmp(w, "-S", 2)) w += 2;
    if (*w && *w != '-' && !strchr(w, '=')) return look_at_named(w, l);
  }
  return PROGRAM_FINE;
}

/* line: what follows "#!". */
static enum program_verdict look_at_script(char *line, struct look *l) {
  if (++l->scripts > MAX_SCRIPTS) return PROGRAM_FINE; /* the kernel will say what is wrong */
  line += strspn(line, " \t");
  size_t n = strcspn(line, " \t\n");
  char *rest = line + n + (line[n] ? 1 : 0);
  rest[strcspn(rest, "\n")] = 0;
  line[n] = 0;
  enum program_verdict v = look_at(line, l);
  const char *base = strrchr(line, '/');
  return v || strcmp(base ? base + 1 : line, "env") != 0 ? v : look_at_env(rest, l);
}

/* ---- files ---- */

/* The loader ignores LD_PRELOAD where a program gets rights that its caller has not (ld.so(8), secure-execution mode). */
static bool is_privileged(int fd) {
  struct stat st;
  if (fstat(fd, &st)) return false;
  if ((st.st_mode & S_ISUID) && st.st_uid != geteuid()) return true;
  if ((st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) && st.st_gid != getegid()) return true;
  return geteuid() != 0 && fgetxattr(fd, "security.capability", NULL, 0) > 0;
}

static enum program_verdict look_at_open(int fd, const char *path, struct look *l) {
  char head[256] = "";
  Elf64_Ehdr e;
  ssize_t n = pread(fd, head, sizeof(head) - 1, 0);
  if (is_privileged(fd))
    return OUT_OF_REACH(l, path, "runs with rights of its own (set-user-ID or alike): the loader ignores preload libraries");
  if (n >= 2 && !memcmp(head, "#!", 2)) return look_at_script(head + 2, l);
  if (n < (ssize_t)sizeof(e) || memcmp(head, ELFMAG, SELFMAG) != 0)
    return PROGRAM_FINE; /* a script without "#!", or nothing that runs */
  memcpy(&e, head, sizeof(e));
  return look_at_elf(fd, path, &e, l);
}

static enum program_verdict look_at(const char *path, struct look *l) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return PROGRAM_FINE; /* may be executed all the same, or exec says why not */
  enum program_verdict v = look_at_open(fd, path, l);
  close(fd);
  return v;
}

static bool is_file(const char *path) {
  struct stat st;
  return !stat(path, &st) && !S_ISDIR(st.st_mode);
}

/* As execvp(3): a file without permission is passed over, but remembered. */
static enum program_verdict find(const char *name, char path[PATH_MAX], struct look *l) {
  bool forbidden = false;
  const char *dirs = strchr(name, '/') ? "" : getenv("PATH");
  if (!dirs) dirs = "/bin:/usr/bin";
  for (const char *d = dirs;; d++) {
    size_t n = strcspn(d, ":");
    snprintf(path, PATH_MAX, "%.*s%s%s", (int)n, d, n ? "/" : "", name);
    if (is_file(path) && access(path, X_OK) == 0) return PROGRAM_FINE;
    forbidden |= access(path, F_OK) == 0;
    d += n;
    if (!*d) break;
  }
  if (forbidden) return say(l, PROGRAM_NOT_EXECUTABLE, "%s cannot be executed: it is a directory or permission is missing", name);
  return say(l, PROGRAM_NOT_FOUND, "%s is not found", name);
}

enum program_verdict program_check(const char *name, char why[PROGRAM_WHY_LEN]) {
  struct look l = {.why = why};
  return look_at_named(name, &l);
}
