/* Files that tell a program whether, and how, the machine virtualizes: what they would say if the library were the kernel's
 * module.
 */
#include <cpuid.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "preload/preload.h"

static bool host_is_amd(void) {
  unsigned a, b = 0, c, d;
  __get_cpuid(0, &a, &b, &c, &d);
  return b == signature_AMD_ebx || b == 0x6f677948; /* "Auth", "Hygo" */
}

/* ---- parameters of the kernel's modules ---- */

enum module { KVM, KVM_INTEL, KVM_AMD };

static const struct parameter {
  enum module module;
  const char *name, *value;
} parameters[] = {
#define PARAMETER(module, name, value) {module, #name, value "\n"},
#include "preload/parameters.def"
#undef PARAMETER
};

static const struct parameter *find_parameter(const char *path) {
  static const char prefix[] = "/sys/module/", middle[] = "/parameters/";
  static const char *const names[] = {"kvm", "kvm_intel", "kvm_amd"};
  if (strncmp(path, prefix, sizeof(prefix) - 1)) return NULL;
  path += sizeof(prefix) - 1;
  const char *slash = strstr(path, middle);
  if (!slash) return NULL;
  for (size_t i = 0; i < ARRAY_SIZE(parameters); i++) {
    const struct parameter *p = &parameters[i];
    const char *module = names[p->module];
    if (strlen(module) != (size_t)(slash - path) || memcmp(module, path, strlen(module))) continue;
    if (strcmp(p->name, slash + sizeof(middle) - 1)) continue;
    return p->module == KVM || (p->module == KVM_AMD) == host_is_amd() ? p : NULL;
  }
  return NULL;
}

static char *parameter_text(const struct target *t, size_t *len) {
  const struct parameter *p = t->text_arg;
  char *text = strdup(p->value);
  *len = text ? strlen(text) : 0;
  return text;
}

/* ---- /proc/cpuinfo ---- */

/* The whole file, for free(). */
static char *read_whole(const char *path, size_t *len) {
  int fd = REAL(open)(path, O_RDONLY | O_CLOEXEC);
  size_t room = 0;
  char *text = NULL;
  ssize_t n = fd < 0 ? -1 : 1;
  for (*len = 0; n > 0; *len += (size_t)(n > 0 ? n : 0)) {
    if (room - *len < 4096) {
      char *more = realloc(text, room += 65536);
      if (!more) break;
      text = more;
    }
    n = REAL(read)(fd, text + *len, room - *len - 1);
  }
  if (fd >= 0) REAL(close)(fd);
  if (n == 0) {
    text[*len] = 0;
    return text;
  }
  free(text);
  return NULL;
}

static bool has_word(const char *line, size_t len, const char *word) {
  size_t n = strlen(word);
  for (const char *p = line; (p = memmem(p, len - (size_t)(p - line), word, n)); p += n)
    if (p > line && p[-1] == ' ' && (p + n == line + len || p[n] == ' ')) return true;
  return false;
}

/* Each line of flags gets the one that says that the processor can virtualize. */
static char *cpuinfo_text(const struct target *t, size_t *len) {
  size_t size;
  char *text = read_whole("/proc/cpuinfo", &size), *out = NULL;
  const char *flag = host_is_amd() ? "svm" : "vmx";
  FILE *f = text ? open_memstream(&out, len) : NULL;
  for (char *line = text; f && *line;) {
    size_t n = strcspn(line, "\n");
    fwrite(line, 1, n, f);
    if (!strncmp(line, "flags\t", 6) && !has_word(line, n, flag)) fprintf(f, " %s", flag);
    line += n;
    if (*line) fputc(*line++, f);
  }
  if (f && REAL(fclose)(f)) {
    free(out);
    out = NULL;
  }
  free(text);
  return out;
}

bool textfile_find(const char *path, struct target *t) {
  if (path[0] != '/') return false;
  if (!strcmp(path, "/proc/cpuinfo")) {
    t->text = cpuinfo_text;
    return true;
  }
  t->text = parameter_text;
  t->text_arg = find_parameter(path);
  return t->text_arg;
}
