/* Runs a libFuzzer-style target without libFuzzer: replays files, or feeds it random and mutated inputs.
 *
 * usage: fuzz_X [-n ITERATIONS] [-t SECONDS] [-s SEED] [-l MAX_LENGTH] [-d DEADLINE] [-w] [FILE...]
 * Without -n and -t the files are replayed as they are; with them they are what mutations start from.  When a signal ends the
 * program, or an input takes longer than DEADLINE seconds, the input is kept in fuzz-last-input of the working directory, so that
 * it can be replayed.  With -w it then waits for a debugger. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* A target may give inputs to start from: the i-th one, NULL after the last. */
const uint8_t *fuzz_seed_input(unsigned i, size_t *size) __attribute__((weak));

enum { MAX_SEEDS = 256 };

struct input {
  uint8_t *data;
  size_t len;
};

static struct input seeds[MAX_SEEDS];
static unsigned seed_count;
static const uint8_t *_Atomic current;
static _Atomic size_t current_len;
static _Atomic unsigned long inputs; /* run so far */
static uint64_t rng_state = 1;

/* xorshift64* */
static uint64_t rnd(void) {
  rng_state ^= rng_state >> 12;
  rng_state ^= rng_state << 25;
  rng_state ^= rng_state >> 27;
  return rng_state * 0x2545f4914f6cdd1dull;
}

static size_t below(size_t n) {
  return n ? (size_t)(rnd() % n) : 0;
}

static bool wait_for_debugger;

/* Async-signal-safe. */
static void on_crash(int sig) {
  int fd = open("fuzz-last-input", O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (fd >= 0) {
    ssize_t ignored = write(fd, current, current_len);
    (void)ignored;
    close(fd);
  }
  while (wait_for_debugger) pause();
  signal(sig, SIG_DFL);
  raise(sig);
}

/* Ends the program when one input takes too long. */
static void *watch(void *arg) {
  unsigned deadline = *(unsigned *)arg;
  for (unsigned long before = inputs;; before = inputs) {
    for (unsigned waited = 0; inputs == before; waited++) {
      if (waited == deadline) {
        fprintf(stderr, "input %lu has been running for %u seconds\n", before, deadline);
        abort();
      }
      sleep(1);
    }
  }
  return NULL;
}

/* All signals go to the main thread, which the target knows of. */
static void start_watch(unsigned *deadline) {
  pthread_t thread;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  if (pthread_create(&thread, NULL, watch, deadline)) exit(1);
  pthread_detach(thread);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* A copy of exactly the input's size, so that a sanitizer sees every byte too far. */
static void run(const uint8_t *data, size_t len) {
  uint8_t *copy = malloc(len ? len : 1);
  if (!copy) exit(1);
  memcpy(copy, data, len);
  current = copy;
  current_len = len;
  LLVMFuzzerTestOneInput(copy, len);
  current_len = 0;
  inputs++;
  free(copy);
}

static void add_seed(const uint8_t *data, size_t len) {
  if (seed_count == MAX_SEEDS) return;
  uint8_t *copy = malloc(len ? len : 1);
  if (!copy) exit(1);
  memcpy(copy, data, len);
  seeds[seed_count++] = (struct input){copy, len};
}

static void read_seed(const char *path) {
  FILE *f = fopen(path, "rb");
  if (!f || fseek(f, 0, SEEK_END) < 0) {
    perror(path);
    exit(1);
  }
  long len = ftell(f);
  uint8_t *data = malloc((size_t)len + 1);
  rewind(f);
  if (!data || fread(data, 1, (size_t)len, f) != (size_t)len) {
    perror(path);
    exit(1);
  }
  fclose(f);
  add_seed(data, (size_t)len);
  free(data);
}

/* Values at which parsers go wrong. */
static uint64_t odd_value(void) {
  static const uint64_t values[] = {0,
                                    1,
                                    2,
                                    0x7f,
                                    0x80,
                                    0xff,
                                    0x7fff,
                                    0x8000,
                                    0xffff,
                                    0x7fffffff,
                                    0x80000000,
                                    0xffffffff,
                                    0x7fffffffffffffff,
                                    0x8000000000000000,
                                    UINT64_MAX,
                                    0xfff,
                                    0x1000};
  uint64_t v = values[below(sizeof(values) / sizeof(values[0]))];
  return below(4) ? v : v - below(64);
}

static void mutate(uint8_t *data, size_t *len, size_t max) {
  for (size_t rounds = 1 + below(8); rounds; rounds--) {
    size_t at = below(*len), width = (size_t)1 << below(4);
    uint64_t value = odd_value();
    switch (below(6)) {
    case 0:
      if (*len) data[at] ^= (uint8_t)(1u << below(8));
      break;
    case 1:
      if (*len) data[at] = (uint8_t)rnd();
      break;
    case 2:
      if (at + width <= *len) memcpy(data + at, &value, width);
      break;
    case 3:
      *len = at;
      break; /* truncate */
    case 4:  /* grow */
      for (size_t n = below(64); n && *len < max; n--) data[(*len)++] = (uint8_t)rnd();
      break;
    default: /* copy a piece over another */
      if (*len) {
        size_t n = below(*len - at < 64 ? *len - at : 64), from = below(*len - n);
        memmove(data + at, data + from, n);
      }
    }
  }
}

/* Returns how many inputs were made: `iterations`, or with `seconds` as many as there is time for. */
static unsigned long fuzz(unsigned long iterations, unsigned seconds, size_t max) {
  uint8_t *data = malloc(max ? max : 1);
  time_t end = time(NULL) + seconds;
  unsigned long i = 0;
  if (!data) exit(1);
  for (; i < iterations || (seconds && time(NULL) < end); i++) {
    size_t len = 0;
    if (seed_count && below(8)) {
      const struct input *s = &seeds[below(seed_count)];
      len = s->len < max ? s->len : max;
      memcpy(data, s->data, len);
      mutate(data, &len, max);
    } else {
      for (size_t n = below(512); len < n && len < max; len++) data[len] = (uint8_t)rnd();
    }
    run(data, len);
  }
  free(data);
  return i;
}

static int usage(void) {
  fputs("usage: fuzz-TARGET [-n ITERATIONS] [-t SECONDS] [-s SEED] [-l MAX_LENGTH] [-d DEADLINE] [-w] [FILE...]\n"
        "Replays the target's own inputs and FILEs, then runs ITERATIONS mutations of them, or SECONDS of them.\n"
        "An input that takes longer than DEADLINE seconds (30) is a failure.\n"
        "-w: a crash waits for a debugger.\n",
        stderr);
  return 2;
}

int main(int argc, char **argv) {
  static unsigned deadline = 30;
  unsigned long iterations = 0;
  unsigned seconds = 0;
  size_t max = 1 << 16;
  int opt;
  while ((opt = getopt(argc, argv, "n:t:s:l:d:w")) != -1) {
    if (opt == 'n')
      iterations = strtoul(optarg, NULL, 10);
    else if (opt == 't')
      seconds = (unsigned)strtoul(optarg, NULL, 10);
    else if (opt == 'd')
      deadline = (unsigned)strtoul(optarg, NULL, 10);
    else if (opt == 'w')
      wait_for_debugger = true;
    else if (opt == 's')
      rng_state = strtoull(optarg, NULL, 10) | 1;
    else if (opt == 'l')
      max = strtoul(optarg, NULL, 10);
    else
      return usage();
  }
  const int signals[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
  for (int i = 0; i < 5; i++) signal(signals[i], on_crash);
  start_watch(&deadline);
  for (int i = optind; i < argc; i++) read_seed(argv[i]);
  size_t len;
  for (unsigned i = 0; fuzz_seed_input; i++) {
    const uint8_t *s = fuzz_seed_input(i, &len);
    if (!s) break;
    add_seed(s, len);
  }
  for (unsigned i = 0; i < seed_count; i++) run(seeds[i].data, seeds[i].len);
  unsigned long generated = fuzz(iterations, seconds, max);
  for (unsigned i = 0; i < seed_count; i++) free(seeds[i].data);
  printf("%u inputs replayed, %lu generated\n", seed_count, generated);
  return 0;
}
