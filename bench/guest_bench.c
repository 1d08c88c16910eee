/* Runs inside the guest (and on the host): small kernels, each printed as "BENCH name nanoseconds-per-operation", the best of three runs.
 *
 * guest_bench [NAME...]: only these. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
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
static uint64_t random_state = 88172645463325252ull;
static uint64_t random64(void) {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return random_state;
}

/* ---- computing ---- */

static void integer(uint64_t n) {
  uint64_t a = 1, b = 3;
  for (uint64_t i = 0; i < n; i++) {
    a = a * 6364136223846793005ull + (b ^ i);
    b = (b << 7 | b >> 57) + a;
  }
  sink = a + b;
}

/* One operation: the primes below 64 Ki. */
static void sieve(uint64_t n) {
  static uint8_t composite[1 << 16];
  for (uint64_t k = 0; k < n; k++) {
    memset(composite, 0, sizeof(composite));
    for (unsigned i = 2; i * i < sizeof(composite); i++)
      if (!composite[i])
        for (unsigned j = i * i; j < sizeof(composite); j += i) composite[j] = 1;
    sink += composite[65535];
  }
}

/* A random cycle through 256 KiB. */
static void pointer_chase(uint64_t n) {
  enum { NODES = 4096, STRIDE = 8 };
  static void *nodes[NODES * STRIDE];
  static uint16_t order[NODES];
  if (!order[1]) {
    for (unsigned i = 0; i < NODES; i++) order[i] = (uint16_t)i;
    for (unsigned i = NODES - 1; i; i--) {
      unsigned j = (unsigned)(random64() % (i + 1));
      uint16_t x = order[i];
      order[i] = order[j], order[j] = x;
    }
    for (unsigned i = 0; i < NODES; i++) nodes[order[i] * STRIDE] = &nodes[order[(i + 1) % NODES] * STRIDE];
  }
  void **p = nodes;
  for (uint64_t i = 0; i < n; i++) p = *p;
  sink = (uintptr_t)p;
}

static int compare(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}
/* One operation: 4096 random words. */
static void sort(uint64_t n) {
  static uint32_t words[4096];
  for (uint64_t i = 0; i < n; i++) {
    for (unsigned k = 0; k < 4096; k++) words[k] = (uint32_t)random64();
    qsort(words, 4096, sizeof(uint32_t), compare);
    sink += words[7];
  }
}

static uint32_t rotate(uint32_t x, unsigned by) {
  return x >> by | x << (32 - by);
}
/* One operation: a block of 64 bytes (FIPS 180-4, section 6.2.2; the constants do not matter to the time it takes). */
static void sha256(uint64_t n) {
  static uint32_t h[8] = {1, 2, 3, 4, 5, 6, 7, 8}, constants[64], data[16];
  for (unsigned i = 0; !constants[63] && i < 64; i++) constants[i] = (uint32_t)random64();
  for (uint64_t k = 0; k < n; k++) {
    uint32_t w[64], v[8];
    memcpy(w, data, 64);
    for (unsigned i = 16; i < 64; i++) {
      uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, h, 32);
    for (unsigned i = 0; i < 64; i++) {
      uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25), ch = (v[4] & v[5]) ^ (~v[4] & v[6]);
      uint32_t t1 = v[7] + s1 + ch + constants[i] + w[i];
      uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22), maj = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
      v[7] = v[6], v[6] = v[5], v[5] = v[4], v[4] = v[3] + t1;
      v[3] = v[2], v[2] = v[1], v[1] = v[0], v[0] = t1 + s0 + maj;
    }
    for (unsigned i = 0; i < 8; i++) h[i] += v[i];
  }
  sink = h[0];
}

static char copy_from[65536], copy_to[65536];
static void copy(uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    memcpy(copy_to, copy_from, sizeof(copy_to));
    __asm__ volatile("" ::"r"(copy_to), "r"(copy_from) : "memory");
  }
}

/* One operation: two 48 x 48 matrices. */
enum { N = 48 };
/* Row by row, as numeric libraries do it, with what vectors the processor has. */
__attribute__((optimize("O3"), target_clones("avx2", "default"), noinline)) static void multiply(double c[N][N], double a[N][N], double b[N][N]) {
  memset(c, 0, sizeof(double[N][N]));
  for (unsigned i = 0; i < N; i++)
    for (unsigned m = 0; m < N; m++)
      for (unsigned j = 0; j < N; j++) c[i][j] += a[i][m] * b[m][j];
}
static void matrix(uint64_t n) {
  static double a[N][N], b[N][N], c[N][N];
  for (unsigned i = 0; i < N; i++)
    for (unsigned j = 0; j < N; j++) a[i][j] = i + j, b[i][j] = i - j * .5;
  for (uint64_t k = 0; k < n; k++) {
    multiply(c, a, b);
    __asm__ volatile("" ::"r"(c) : "memory");
  }
  sink = (uint64_t)c[3][5];
}

static void x87(uint64_t n) {
  volatile long double start = 1.5L;
  long double a = start, b = 0.25L;
  for (uint64_t i = 0; i < n; i++) {
    a = a * 1.0000001L + b;
    b = b / 1.0000003L - 1e-9L * a;
  }
  sink = (uint64_t)a;
}

/* One operation: both over 4 KiB. */
static void strings(uint64_t n) {
  static char text[4097];
  memset(text, 'x', 4096);
  char *volatile p = text;
  for (uint64_t i = 0; i < n; i++) sink += strlen(p) + (memchr(p, 'y', 4096) != NULL);
}

static uint64_t f0(uint64_t x) {
  return x + 1;
}
static uint64_t f1(uint64_t x) {
  return x ^ 3;
}
static uint64_t f2(uint64_t x) {
  return x * 5;
}
static uint64_t f3(uint64_t x) {
  return x >> 1;
}
static void indirect_calls(uint64_t n) {
  static uint64_t (*const volatile table[4])(uint64_t) = {f0, f1, f2, f3};
  uint64_t x = 1;
  for (uint64_t i = 0; i < n; i++) x = table[i & 3](x);
  sink = x;
}

static __attribute__((noinline)) unsigned fibonacci(unsigned n) {
  unsigned r = n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
  __asm__ volatile("" : "+r"(r)); /* the compiler keeps every call */
  return r;
}
/* One operation: 21891 calls. */
static void recursive_calls(uint64_t n) {
  for (uint64_t i = 0; i < n; i++) sink += fibonacci(20);
}

static void branch(uint64_t n) {
  uint64_t c = 0;
  for (uint64_t i = 0; i < n; i++) {
    uint64_t x = random64();
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

/* ---- the system ---- */

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

static void ping_pong(uint64_t n) {
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

static void proc_file(uint64_t n) {
  char buffer[512];
  for (uint64_t i = 0; i < n; i++) {
    int fd = open("/proc/uptime", O_RDONLY);
    if (read(fd, buffer, sizeof(buffer)) <= 0) return;
    close(fd);
  }
}

/* One operation: an immediate operand is changed and the function called. */
static void self_modifying(uint64_t n) {
  static uint8_t *code;
  if (!code) {
    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED) exit(1);
    memcpy(code, "\xb8\0\0\0\0\xc3", 6); /* mov eax, imm32; ret */
  }
  uint32_t (*fn)(void) = (uint32_t(*)(void))(uintptr_t)code;
  for (uint32_t i = 0; i < n; i++) {
    memcpy(code + 1, &i, 4);
    __asm__ volatile("" ::: "memory");
    if (fn() != i) printf("self-modifying code: wrong\n");
  }
}

static _Atomic uint64_t counter;
static void *add(void *n) {
  for (uint64_t i = 0; i < (uintptr_t)n; i++) atomic_fetch_add(&counter, 1);
  return NULL;
}
/* Two threads at once; one operation: an addition by each. */
static void atomic_adds(uint64_t n) {
  pthread_t t;
  counter = 0;
  pthread_create(&t, NULL, add, (void *)(uintptr_t)n);
  add((void *)(uintptr_t)n);
  pthread_join(t, NULL);
  if (counter != 2 * n) printf("atomic addition: wrong\n");
}

static const struct {
  const char *name;
  void (*fn)(uint64_t n);
  uint64_t n;
} kernels[] = {
    {"integer", integer, 4000000},
    {"sieve", sieve, 30},
    {"pointer-chase", pointer_chase, 2000000},
    {"qsort", sort, 20},
    {"sha256", sha256, 20000},
    {"memcpy", copy, 4000},
    {"matrix", matrix, 40},
    {"x87", x87, 1000000},
    {"strings", strings, 20000},
    {"indirect-call", indirect_calls, 3000000},
    {"recursive-call", recursive_calls, 200},
    {"syscall", system_calls, 50000},
    {"page-fault", page_faults, 8192},
    {"fork", forks, 100},
    {"pipe", ping_pong, 2000},
    {"proc-file", proc_file, 4000},
    {"self-modifying", self_modifying, 20000},
    {"atomic-add", atomic_adds, 1000000},
    {"branch", branch, 2000000},
    {"floating", floating, 1000000},
    {"simd", simd, 1000000},
};

static int chosen(int argc, char **argv, const char *name) {
  for (int k = 1; k < argc; k++)
    if (!strcmp(argv[k], name)) return 1;
  return argc < 2;
}

static uint64_t best_of_three(size_t k) {
  uint64_t best = UINT64_MAX;
  kernels[k].fn(kernels[k].n / 10 + 1);
  for (int run = 0; run < 3; run++) {
    uint64_t start = now();
    kernels[k].fn(kernels[k].n);
    uint64_t time = now() - start;
    if (time < best) best = time;
  }
  return best;
}

int main(int argc, char **argv) {
  for (size_t k = 0; k < sizeof(kernels) / sizeof(kernels[0]); k++) {
    if (!chosen(argc, argv, kernels[k].name)) continue;
    printf("BENCH %s %.2f\n", kernels[k].name, (double)best_of_three(k) / (double)kernels[k].n);
    fflush(stdout);
  }
  return 0;
}
