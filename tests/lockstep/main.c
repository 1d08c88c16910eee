/* Runs each program natively and on both engines, and compares: values with the native run's at every checkpoint, and the two
 * machines
 *
 *   coarsely  at every checkpoint, so that translated code runs as it does for a client: linked, over many blocks
 *   finely    (--fine, and from the last good checkpoint on after a difference) whenever translated code leaves a block that is
 * not linked: the interpreter goes on instruction by instruction until it has the same registers, and then everything has to be
 * the same kicked    (--kicked) coarsely, while another thread stops translated code at any block
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "lockstep.h"
#include "x86/x86.h"

#define PATIENCE 3000000u /* instructions to the next checkpoint, more than any has */

static u64 steps;
static bool fine, kicked;
static _Atomic u64 kicks;
static _Atomic bool quiet; /* no more kicks */

static u64 at_rip(struct machine *m) {
  return machine_vcpu(m)->regs[X86_REG_RIP];
}

static bool all_same(struct machine *a, struct machine *b) {
  return same_registers(a, b) && same_state(a, b) && same_memory(a, b);
}

static bool differs(const char *name, u64 checkpoint, u64 block, struct machine *a, struct machine *b) {
  printf("%s: engines differ after checkpoint %llu; translated code from %llx:\n", name, (unsigned long long)checkpoint,
         (unsigned long long)block);
  tell_code(b, block);
  tell_state(a, b);
  return false;
}

/* The interpreter reaches where translated code left.  Memory is compared only where it may matter: it is slow. */
static bool catch_up(struct machine *a, struct machine *b, enum event want, enum event *have) {
  for (unsigned n = 0; n < PATIENCE; n++) {
    if (*have == want && same_registers(a, b) && same_state(a, b)) return true;
    if (*have != RUNS) return false;
    *have = machine_step(a);
    steps++;
  }
  return false;
}

static bool finely(const char *name, u64 checkpoint, struct machine *a, struct machine *b, enum event *end) {
  u64 blocks = 0;
  for (;;) {
    u64 block = at_rip(b);
    enum event want = machine_step(b), have = RUNS;
    if (want == RUNS && at_rip(b) == block) continue; /* an iteration, a retry */
    have = machine_step(a);
    steps++;
    if (!catch_up(a, b, want, &have) || (!(blocks++ & 255) && !same_memory(a, b))) return differs(name, checkpoint, block, a, b);
    *end = want;
    if (want != RUNS) return same_memory(a, b) || differs(name, checkpoint, block, a, b);
  }
}

static bool coarsely(struct machine *a, struct machine *b, enum event *end) {
  enum event x = machine_run(a), y = machine_run(b);
  *end = y;
  return x == y && y != BROKEN && all_same(a, b);
}

static bool as_native(const struct program *p, const struct work *native, struct machine *m) {
  const struct work *w = machine_work(m);
  if (p->guest_only) return w->n > 0;
  if (w->n == native->n && !memcmp(w->value, native->value, w->n * sizeof(w->value[0]))) return true;
  for (u64 n = 0; n < w->n; n++)
    if (w->value[n] != native->value[n]) {
      printf("%s: checkpoint %llu has %llx, natively %llx\n", p->name, (unsigned long long)n, (unsigned long long)w->value[n],
             (unsigned long long)native->value[n]);
      return false;
    }
  printf("%s: %llu checkpoints, natively %llu\n", p->name, (unsigned long long)w->n, (unsigned long long)native->n);
  return false;
}

static void *kick(void *machine) {
  struct timespec t = {.tv_nsec = 5000};
  while (!quiet) {
    machine_kick(machine);
    kicks++;
    nanosleep(&t, NULL);
  }
  return NULL;
}

static void start_kicking(pthread_t *thread, struct machine *m) {
  quiet = false;
  if (kicked && pthread_create(thread, NULL, kick, m)) abort();
}

static void stop_kicking(pthread_t thread) {
  quiet = true;
  if (kicked) pthread_join(thread, NULL);
}

/* Up to checkpoint `fine_from` coarsely, then finely.  *reached: the checkpoints that were passed. */
static bool run_both(const struct program *p, const struct work *native, u64 fine_from, u64 *reached) {
  struct machine *a = machine_new(INTERPRETER, p), *b = machine_new(TRANSLATOR, p);
  enum event end = RUNS;
  bool good = true;
  pthread_t thread = 0;
  start_kicking(&thread, b);
  for (*reached = 0; good && end != END && end != BROKEN; ++*reached) {
    good = *reached < fine_from ? coarsely(a, b, &end) : finely(p->name, *reached, a, b, &end);
    if (!good) break;
  }
  stop_kicking(thread);
  if (good && end == BROKEN)
    good = false, printf("%s: broken at %llx\n", p->name, (unsigned long long)at_rip(b)), tell_state(a, b);
  if (good) good = as_native(p, native, b);
  if (!good && *reached < fine_from)
    printf("%s: engines differ between checkpoints %llu and %llu\n", p->name, (unsigned long long)*reached,
           (unsigned long long)*reached + 1),
        tell_state(a, b);
  machine_free(a);
  machine_free(b);
  return good;
}

static bool test(const struct program *p) {
  static struct work native;
  u64 reached, again;
  memset(&native, 0, sizeof(native));
  native.native = 1;
  if (!p->guest_only) p->run(&native);
  steps = kicks = 0;
  bool good = run_both(p, &native, fine ? 0 : ~0ull, &reached);
  if (!good && !fine && run_both(p, &native, reached, &again)) puts("  not when blocks are not linked");
  printf("%-12s %s, %llu checkpoints%s", p->name, good ? "same" : "DIFFERENT", (unsigned long long)reached - good,
         fine || kicked ? "" : "\n");
  if (fine) printf(", %llu instructions\n", (unsigned long long)steps);
  if (kicked) printf(", %llu kicks\n", (unsigned long long)kicks);
  fflush(stdout);
  return good;
}

int main(int argc, char **argv) {
  bool good = true, any = false;
  fine = argc > 1 && !strcmp(argv[1], "--fine");
  kicked = argc > 1 && !strcmp(argv[1], "--kicked");
  int first = 1 + (fine || kicked);
  if (first < argc && argv[first][0] == '-') {
    fputs("usage: lockstep [--fine|--kicked] [PROGRAM...]\nRuns programs in the interpreter and as translated code, and compares "
          "the machines at checkpoints, or (--fine) at block ends;\n--kicked: translated code is stopped again and again.\n",
          stderr);
    return 2;
  }
  for (unsigned n = 0; n < n_programs; n++) {
    bool wanted = first >= argc;
    for (int k = first; k < argc; k++) wanted |= !strcmp(argv[k], programs[n].name);
    if (!wanted) continue;
    if (!strcmp(programs[n].name, "vectors") && !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) continue;
    any = true;
    good &= test(&programs[n]);
  }
  if (!any) fputs("lockstep: no such program\n", stderr);
  return !good || !any;
}
