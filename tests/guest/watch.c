/* What the translator tells of its work: the listing, the names for perf, the statistics; the size of its cache
 * (docs/translator.md).  `watch loop` only runs the guest, for gdb_test.py. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "harness.h"

#define ROUNDS 100000

/* Two blocks that run often: a loop of four instructions, one of which stores, and a function. */
GUEST_BLOB(work, "mov $0x60000, %ebx\n mov $100000, %ecx\n"
                 "1: call 2f\n add %rax, (%rbx)\n dec %ecx\n jnz 1b\n" REPORT(1) "hlt\n"
                                                                                 "2: mov $3, %eax\n ret\n");
#define LOOP     (GUEST_CODE + 10)
#define FUNCTION ((u64)(GUEST_CODE + (work_end - work_start) - 6))

static char *path_of(const char *name) {
  static char path[2][64];
  static unsigned n;
  char *p = path[n++ % 2];
  snprintf(p, sizeof(path[0]), "watch-test-%d-%s", (int)getpid(), name);
  return p;
}

static char *contents(const char *path) {
  FILE *f = fopen(path, "r");
  CHECK(f != NULL);
  if (!f) return strdup("");
  char *text = NULL;
  size_t room = 0;
  if (getdelim(&text, &room, 0, f) < 0) text = strdup("");
  fclose(f);
  return text;
}

static struct guest *run_work(void) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load_blob(g, work);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_read(g, GUEST_DATA, 8), 3 * ROUNDS);
  return g;
}

/* ---- the listing ---- */

/* The part of the listing that is about the block at this address, as a string of its own; "" where there is none. */
static char *listing_of(const char *text, u64 address) {
  char mark[32];
  snprintf(mark, sizeof(mark), " (%" PRIx64 ", gpa", address);
  const char *at = strstr(text, mark);
  CHECK(at != NULL);
  if (!at) return strdup("");
  while (at > text && at[-1] != '\n') at--;
  const char *end = strstr(at, "\n\n");
  return strndup(at, end ? (size_t)(end - at) : strlen(at));
}

/* Host instructions follow each other without a gap, and end where the head says. */
static void check_offsets(const char *listing, unsigned total) {
  unsigned lines = 0, last = 0, offset;
  for (const char *p = listing; (p = strstr(p, "  +")); p += 3) {
    if (sscanf(p, "  +%x ", &offset) != 1) continue;
    CHECK(lines == 0 ? offset == 0 : offset > last && offset - last <= 15);
    last = offset;
    lines++;
  }
  CHECK(lines > 10);
  CHECK(total > last && total - last <= 15);
}

static void check_listing(const char *text, const char *name) {
  char want[64];
  char *l = listing_of(text, FUNCTION);
  unsigned number, insns, bytes, total;
  CHECK(sscanf(l, "#%u %*s (%*x, gpa %*x), supervisor: %u instructions, %u bytes to %u at 0x", &number, &insns, &bytes, &total) ==
        4);
  CHECK_EQ(insns, 2);
  CHECK_EQ(bytes, 6);
  snprintf(want, sizeof(want), "#%u %s (", number, name);
  CHECK(!strncmp(l, want, strlen(want)));
  /* RAX lives in R13. */
  snprintf(want, sizeof(want), "%016" PRIx64 "  mov eax, 0x3 ", FUNCTION);
  CHECK(strstr(l, want) && strstr(strstr(l, want), "mov r13d, 0x3\n"));
  CHECK(strstr(l, "  ret "));
  CHECK(strstr(l, "; core.gate\n") && strstr(l, "; code.interpret\n") && strstr(l, "; tlb.super[].read\n"));
  CHECK(strstr(l, " slow paths and exits\n"));
  check_offsets(l, total);
  free(l);
  l = listing_of(text, LOOP + 5);
  CHECK(strstr(l, "add [rbx], rax "));
  free(l);
}

static void test_trace(void) {
  char *file = path_of("trace");
  unlink(file);
  setenv("UVIRT_TRACE_CODE", file, 1);
  guest_free(run_work());
  unsetenv("UVIRT_TRACE_CODE");
  char name[32], *text = contents(file);
  CHECK(strstr(text, "guest registers in host registers: rax r13,"));
  snprintf(name, sizeof(name), "guest:%" PRIx64, FUNCTION);
  check_listing(text, name);
  free(text);
  unlink(file);
}

/* Names: the nearest symbol below; none behind the last one. */
static void test_symbols(void) {
  char *file = path_of("trace"), *map = path_of("map");
  FILE *f = fopen(map, "w");
  fprintf(f, "%016x T work\n%016" PRIx64 " t three\n%016" PRIx64 " t alias\nnonsense\n%016x A number\n%016x B end\n", GUEST_CODE,
          FUNCTION, FUNCTION, GUEST_CODE + 1, GUEST_DATA);
  fclose(f);
  unlink(file);
  setenv("UVIRT_TRACE_CODE", file, 1);
  setenv("UVIRT_SYMBOLS", map, 1);
  guest_free(run_work());
  unsetenv("UVIRT_TRACE_CODE");
  unsetenv("UVIRT_SYMBOLS");
  char *text = contents(file);
  check_listing(text, "guest:three");
  CHECK(strstr(text, " guest:work+a "));
  free(text);
  unlink(file);
  unlink(map);
}

/* ---- perf ---- */

static char *perf_map(void) {
  char path[32];
  snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
  return contents(path);
}

/* Nothing in the map overlaps anything else in it; returns how many lines there are. */
static unsigned check_map(const char *text) {
  struct {
    u64 start, size;
  } seen[64];
  unsigned n = 0;
  for (const char *p = text; *p; p = strchr(p, '\n') + 1) {
    u64 start, size;
    int name = 0;
    CHECK(sscanf(p, "%" SCNx64 " %" SCNx64 " guest:%n", &start, &size, &name) == 2 && name && size > 0 && strchr(p, '\n'));
    for (unsigned k = 0; k < n; k++) CHECK(start >= seen[k].start + seen[k].size || seen[k].start >= start + size);
    CHECK(n < 64);
    if (n == 64 || !strchr(p, '\n')) break;
    seen[n].start = start;
    seen[n++].size = size;
  }
  return n;
}

/* Two VMs at a time, then one more where the others were. */
static void test_perf_map(void) {
  char want[32];
  setenv("UVIRT_PERF_MAP", "1", 1);
  struct guest *a = run_work();
  char *text = perf_map();
  unsigned n = check_map(text);
  CHECK(n >= 2);
  snprintf(want, sizeof(want), " guest:%" PRIx64 "\n", FUNCTION);
  CHECK(strstr(text, want));
  free(text);
  struct guest *b = run_work();
  text = perf_map();
  CHECK_EQ(check_map(text), 2 * n);
  free(text);
  guest_free(a);
  guest_free(b);
  guest_free(run_work());
  text = perf_map();
  unsigned again = check_map(text);
  CHECK(again >= n && again <= 3 * n);
  free(text);
  unsetenv("UVIRT_PERF_MAP");
  snprintf(want, sizeof(want), "/tmp/perf-%d.map", (int)getpid());
  unlink(want);
}

/* ---- statistics, the cache ---- */

static void test_statistics(void) {
  struct guest *g = run_work();
  u64 n = guest_stat(g->vcpu, "translations"), guest_bytes = guest_stat(g->vcpu, "translated_guest_bytes"),
      host_bytes = guest_stat(g->vcpu, "translated_host_bytes"), ns = guest_stat(g->vcpu, "translation_ns");
  CHECK(n >= 2 && n <= 8);
  CHECK(guest_bytes >= 6 + 7 && guest_bytes <= n * (u64)(work_end - work_start));
  CHECK(host_bytes > guest_bytes && host_bytes < n * 16384);
  CHECK(ns > 0 && ns < 10000000000ull);
  CHECK_EQ(guest_stat(g->vm, "translation_resets"), 0);
  guest_free(g);
}

/* Functions that run often, until there is no room for them: all are right, before and after everything is forgotten. */
GUEST_BLOB(many, "mov $4, %ebp\n" /* rounds */
                 "1: mov $0x100000, %ebx\n mov $3000, %ecx\n"
                 "2: mov $20, %edx\n"
                 "3: call *%rbx\n dec %edx\n jnz 3b\n"
                 "add $64, %rbx\n dec %ecx\n jnz 2b\n dec %ebp\n jnz 1b\n" REPORT(1) "hlt\n");

static void test_small_cache(void) {
  static const u8 function[] = {0x48, 0x83, 0xc0, 1, 0x48, 0x01, 0x04,
                                0x25, 0,    0,    6, 0,    0xc3}; /* add $1, %rax; add %rax, 0x60000; ret */
  setenv("UVIRT_CODE_CACHE", "1M", 1);
  struct guest *g = guest_new();
  unsetenv("UVIRT_CODE_CACHE");
  guest_long(g, GUEST_CODE);
  guest_load_blob(g, many);
  for (unsigned n = 0; n < 3000; n++) guest_load(g, 0x100000 + 64 * n, function, sizeof(function));
  struct kvm_regs r = guest_regs(g);
  r.rax = 0;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 1);
  u64 calls = 4 * 3000 * 20;
  CHECK_EQ(guest_read(g, GUEST_DATA, 8), calls * (calls + 1) / 2);
  CHECK(guest_stat(g->vm, "translation_resets") > 0);
  guest_free(g);
}

static void test_wrong_size(void) {
  static const char *const wrong[] = {"1023K", "2G", "64X", "-1M", "M", "1MM", "99999999999999999999"};
  struct guest *g = guest_new();
  for (unsigned n = 0; n < sizeof(wrong) / sizeof(wrong[0]); n++) {
    setenv("UVIRT_CODE_CACHE", wrong[n], 1);
    int vm = guest_ioctl(g->sys, KVM_CREATE_VM, NULL);
    CHECK(vm < 0 && errno == EINVAL);
  }
  unsetenv("UVIRT_CODE_CACHE");
  guest_free(g);
}

static void test_loop(void) {
  guest_free(run_work());
}

GUEST_MAIN({"trace", test_trace}, {"symbols", test_symbols}, {"perf-map", test_perf_map}, {"statistics", test_statistics},
           {"small-cache", test_small_cache}, {"wrong-size", test_wrong_size}, {"loop", test_loop})
