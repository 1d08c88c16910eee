/* A program inside a Linux guest that notices when state is lost: one thread per CPU rewrites a buffer, and before each write checks the
 * value of the round before; values live in integer, x87, SSE and (if there) AVX registers across preemptions; time never goes back.
 *
 * usage: busy MEGABYTES_PER_THREAD
 *
 * Prints "busy: tick N SUM" once per round of the first thread, SUM being a function of N; "busy: BROKEN ..." on any difference, and goes
 * on, so that the host sees it.  Linked statically.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t word;

static size_t words;

static word mix(word v) {
  v = (v ^ v >> 31) * 0x9e3779b97f4a7c15ull;
  return v ^ v >> 29;
}

static void broken(const char *what, word at, word got, word want) {
  printf("busy: BROKEN %s at %#llx: %#llx, should be %#llx\n", what, (unsigned long long)at, (unsigned long long)got,
         (unsigned long long)want);
  fflush(stdout);
}

/* Memory: each word is a function of its place and the round. */
static void memory_round(word *area, word round, word thread) {
  word old = mix(round - 1 + thread), now = mix(round + thread);
  for (size_t n = 0; n < words; n++) {
    if (round > 1 && area[n] != mix(old + n)) broken("memory", n, area[n], mix(old + n));
    area[n] = mix(now + n);
  }
}

typedef double vector __attribute__((vector_size(32)));

/* Registers: the same recurrence in all kinds at once; the exact value of each is known. */
__attribute__((target("avx"))) static void avx_round(void) {
  vector v = {1, 2, 3, 4}, one = {1, 1, 1, 1};
  __asm__ volatile("1: vaddpd %1, %0, %0\n dec %%rcx\n jnz 1b" : "+&x"(v) : "x"(one), "c"(200000ul) : "cc");
  for (unsigned n = 0; n < 4; n++)
    if (v[n] != 200001 + n) broken("AVX", n, (word)v[n], 200001 + n);
}

static void register_round(void) {
  long double x = 1;
  double s = 1;
  word count = 200000, sum = 0;
  __asm__ volatile("fld1\n fldt %2\n1: fadd %%st(1), %%st\n addsd %4, %1\n add %0, %3\n dec %0\n jnz 1b\n fstpt %2\n fstp %%st(0)"
                   : "+&r"(count), "+&x"(s), "+m"(x), "+&r"(sum)
                   : "x"(1.0)
                   : "cc", "st", "st(1)");
  if (x != 200001) broken("x87", 0, (word)x, 200001);
  if (s != 200001) broken("SSE", 0, (word)s, 200001);
  if (sum != 200000ull * 200001 / 2) broken("integer", 0, sum, 200000ull * 200001 / 2);
  if (__builtin_cpu_supports("avx")) avx_round();
}

static void time_round(word *last) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  word now = (word)t.tv_sec * 1000000000u + (word)t.tv_nsec;
  if (now < *last) broken("time", 0, now, *last);
  *last = now;
}

static void *work(void *arg) {
  word thread = (word)(uintptr_t)arg, last = 0;
  word *area = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (area == MAP_FAILED) exit(1);
  for (word round = 1;; round++) {
    memory_round(area, round, thread << 32);
    register_round();
    time_round(&last);
    if (thread) continue;
    printf("busy: tick %llu %llx\n", (unsigned long long)round, (unsigned long long)mix(round));
    fflush(stdout);
  }
  return NULL;
}

int main(int argc, char **argv) {
  words = (size_t)(argc > 1 ? atoi(argv[1]) : 8) << 17;
  long cpus = sysconf(_SC_NPROCESSORS_ONLN);
  for (long n = 1; n < cpus; n++) {
    pthread_t t;
    if (pthread_create(&t, NULL, work, (void *)(uintptr_t)n)) return 1;
  }
  work(NULL);
}
