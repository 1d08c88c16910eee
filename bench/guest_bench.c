/* Runs inside the guest (and on the host): small kernels, each printed as "BENCH name nanoseconds-per-operation". */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static volatile uint64_t sink;

static void integer(uint64_t n) {
  uint64_t a = 1, b = 3;
  for (uint64_t i = 0; i < n; i++) {
    a = a * 6364136223846793005ull + (b ^ i);
    b = (b << 7 | b >> 57) + a;
  }
  sink = a + b;
}

static uint32_t words[1 << 16];
static void memory(uint64_t n) {
  uint64_t s = 0;
  for (uint64_t i = 0; i < n; i++) {
    words[i * 7 & 0xffff] += (uint32_t)i;
    s += words[i * 13 & 0xffff];
  }
  sink = s;
}

static void branch(uint64_t n) {
  uint64_t x = 88172645463325252ull, c = 0;
  for (uint64_t i = 0; i < n; i++) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    if (x & 1) c += 3;
    else if (x & 2) c ^= i;
    else c--;
  }
  sink = c;
}

static void floating(uint64_t n) {
  double a = 1.0, b = 0.5;
  for (uint64_t i = 0; i < n; i++) {
    a = a * 1.0000001 + b;
    b = b / 1.0000003 + 1e-9 * a;
  }
  sink = (uint64_t)(a + b);
}

typedef float vec __attribute__((vector_size(16)));
static void simd(uint64_t n) {
  vec a = {1, 2, 3, 4}, b = {.1f, .2f, .3f, .4f}, s = {0};
  for (uint64_t i = 0; i < n; i++) {
    s += a * b;
    a -= b;
    __asm__ volatile("" : "+x"(s), "+x"(a));
  }
  sink = (uint64_t)s[0];
}

static char copy_from[65536], copy_to[65536];
static void copies(uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    memcpy(copy_to, copy_from, sizeof(copy_to));
    __asm__ volatile("" ::"r"(copy_to), "r"(copy_from) : "memory");
  }
}

static void system_calls(uint64_t n) {
  for (uint64_t i = 0; i < n; i++) syscall(SYS_getppid);
}

static void page_faults(uint64_t n) {
  size_t chunk = 256;
  for (uint64_t done = 0; done < n; done += chunk) {
    char *p = mmap(NULL, chunk * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t k = 0; k < chunk; k++) p[k * 4096] = 1;
    munmap(p, chunk * 4096);
  }
}

static void forks(uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    pid_t p = fork();
    if (!p) _exit(0);
    waitpid(p, NULL, 0);
  }
}

static void context_switches(uint64_t n) {
  int a[2], b[2];
  char c = 0;
  if (pipe(a) || pipe(b)) return;
  pid_t p = fork();
  if (!p) {
    for (uint64_t i = 0; i < n; i++)
      if (read(a[0], &c, 1) != 1 || write(b[1], &c, 1) != 1) break;
    _exit(0);
  }
  for (uint64_t i = 0; i < n; i++)
    if (write(a[1], &c, 1) != 1 || read(b[0], &c, 1) != 1) break;
  waitpid(p, NULL, 0);
  close(a[0]), close(a[1]), close(b[0]), close(b[1]);
}

static const struct {
  const char *name;
  void (*fn)(uint64_t n);
  uint64_t n;
} kernels[] = {
    {"integer", integer, 2000000},          {"memory", memory, 2000000},       {"branch", branch, 2000000},
    {"floating", floating, 1000000},        {"simd", simd, 1000000},           {"memcpy64k", copies, 2000},
    {"syscall", system_calls, 50000},       {"page-fault", page_faults, 8192}, {"fork", forks, 100},
    {"context-switch", context_switches, 3000},
};

int main(void) {
  for (size_t k = 0; k < sizeof(kernels) / sizeof(kernels[0]); k++) {
    kernels[k].fn(kernels[k].n / 10);
    uint64_t start = now();
    kernels[k].fn(kernels[k].n);
    printf("BENCH %s %.2f\n", kernels[k].name, (double)(now() - start) / (double)kernels[k].n);
    fflush(stdout);
  }
  return 0;
}
