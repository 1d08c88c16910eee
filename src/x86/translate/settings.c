/* Reads the translator's environment variables. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "x86/translate/settings.h"

#define CACHE_DEFAULT ((size_t)64 << 20)
#define CACHE_MIN     ((size_t)1 << 20)
#define CACHE_MAX     ((size_t)1 << 30) /* 32-bit displacements reach from end to end */

/* An empty variable is as good as none. */
static const char *variable(const char *name) {
  const char *value = getenv(name);
  return value && *value ? value : NULL;
}

static bool is_on(const char *name) {
  const char *value = variable(name);
  return value && strcmp(value, "0");
}

/* A number with K, M or G; without one it is in MiB, as everywhere. */
static bool parse_size(const char *text, size_t *size) {
  static const char units[] = "KMG";
  char *end;
  errno = 0;
  unsigned long long n = strtoull(text, &end, 10);
  const char *unit = *end ? strchr(units, *end >= 'a' ? *end - 32 : *end) : NULL;
  unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 20;
  if (end == text || *text == '-' || errno || (*end && (!unit || end[1])) || n > SIZE_MAX >> shift) return false;
  *size = (size_t)n << shift;
  return true;
}

int x86_code_settings(struct x86_code_settings *s) {
  const char *engine = variable("UVIRT_ENGINE"), *cache = variable("UVIRT_CODE_CACHE");
  *s = (struct x86_code_settings){.off = engine && !strcmp(engine, "interpreter"),
                                  .cache = CACHE_DEFAULT,
                                  .trace = variable("UVIRT_TRACE_CODE"),
                                  .symbols = variable("UVIRT_SYMBOLS"),
                                  .perf = is_on("UVIRT_PERF_MAP"),
                                  .gdb = is_on("UVIRT_GDB_JIT")};
  if (cache && (!parse_size(cache, &s->cache) || s->cache < CACHE_MIN || s->cache > CACHE_MAX)) {
    log_warn("UVIRT_CODE_CACHE=%s is not a size from 1M to 1G", cache);
    return -EINVAL;
  }
  s->cache = ALIGN_UP(s->cache, (size_t)PAGE_SIZE);
  return 0;
}
