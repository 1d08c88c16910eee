/* The instruction differential: arguments, progress, summary.  diff.h says how it works. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "diff.h"

static u64 state[4];

u64 rnd(void) {
  u64 r = state[1] * 5, t = state[1] << 17;
  r = (r << 7 | r >> 57) * 9;
  state[2] ^= state[0];
  state[3] ^= state[1];
  state[1] ^= state[2];
  state[0] ^= state[3];
  state[2] ^= t;
  state[3] = state[3] << 45 | state[3] >> 19;
  return r;
}

void rnd_seed(u64 s) {
  for (unsigned n = 0; n < 4; n++) { /* splitmix64 */
    u64 z = s += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    state[n] = z ^ z >> 31;
  }
}

static struct {
  u64 cases, differences, faults;
} count[ZYDIS_MNEMONIC_MAX_VALUE + 1];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void usage(FILE *f) {
  fputs("usage: diff [--cases N] [--seed S] [--family NAME] [--mnemonic NAME] [--mode 16|32|64] [--summary]\n"
        "Runs random instructions on the host CPU and in the engine and compares what they leave.\n"
        "  --cases N       how many (default 1000000; K and M may follow)\n"
        "  --seed S        another sequence (default 1; 0: from the clock)\n"
        "  --family NAME   only instructions of one family (alu, mov, string, ..., x87, mmx, sse, avx, avx512, gfni, xsave),\n"
        "                  of all general ones (general) or all on extended state (ext)\n"
        "  --mnemonic NAME only one instruction\n"
        "  --mode 16|32|64    16-bit, compatibility or 64-bit mode (default 64)\n"
        "  --flags         instead: the decoder's sets of flags read and written against the host\n"
        "  --encodings     instead: what the decoder refuses must be undefined on the host\n"
        "  --summary       a line per mnemonic at the end\n"
        "  --sequences     instead: sequences of instructions on the host CPU, in the interpreter and as translated code\n"
        "  --v86           with --sequences: 16-bit code in virtual-8086 mode, in the two engines alone\n"
        "  --real          the same in real mode\n"
        "  --based         32-bit mode with segments that have bases and limits, as 16-bit mode has them\n"
        "  --replay S      one sequence, by the number that a report names\n"
        "  --code HEX,...  with other instructions than its own\n",
        f);
}

static u64 number(const char *s) {
  char *end;
  u64 v = strtoull(s, &end, 0);
  if (*end == 'k' || *end == 'K') v *= 1000;
  if (*end == 'm' || *end == 'M') v *= 1000000;
  return v;
}

struct options {
  u64 cases, seed;
  const char *family, *mnemonic;
  unsigned mode;
  const char *replay, *code;
  bool summary, encodings, flags, sequences, v86, real, based;
};

static bool parse(int argc, char **argv, struct options *o) {
  for (int n = 1; n < argc; n++) {
    const char *a = argv[n], *v = n + 1 < argc ? argv[n + 1] : NULL;
    if (!strcmp(a, "--flags")) {
      o->flags = true;
      continue;
    }
    if (!strcmp(a, "--encodings")) {
      o->encodings = true;
      continue;
    }
    if (!strcmp(a, "--sequences")) {
      o->sequences = true;
      continue;
    }
    if (!strcmp(a, "--based")) {
      o->based = true;
      o->mode = 32;
      continue;
    }
    if (!strcmp(a, "--v86") || !strcmp(a, "--real")) {
      o->v86 = true;
      o->real = !strcmp(a, "--real");
      o->mode = 16;
      continue;
    }
    if (!strcmp(a, "--summary")) {
      o->summary = true;
      continue;
    }
    if (!v) return false;
    n++;
    if (!strcmp(a, "--cases")) o->cases = number(v);
    else if (!strcmp(a, "--seed")) o->seed = number(v);
    else if (!strcmp(a, "--mode")) o->mode = (unsigned)number(v);
    else if (!strcmp(a, "--family")) o->family = v;
    else if (!strcmp(a, "--mnemonic")) o->mnemonic = v;
    else if (!strcmp(a, "--replay")) o->replay = v;
    else if (!strcmp(a, "--code")) o->code = v;
    else return false;
  }
  return true;
}

static struct diff_case k;
static struct diff_state host, engine;

static u64 run(const struct options *o) {
  double start = now(), last = start;
  u64 differences = 0;
  bool terminal = isatty(2);
  for (u64 n = 0; n < o->cases; n++) {
    gen_case(&k);
    if (o->flags) {
      differences += !check_flags(&k);
      continue;
    }
    host_run(&k, &host);
    engine_run(&k, &engine);
    unsigned m = k.insn.mnemonic;
    count[m].cases++;
    if (host.vector >= 0) count[m].faults++;
    if (!compare(&k, &host, &engine)) {
      count[m].differences++;
      differences++;
    }
    if ((n & 0xfff) || now() - last < (terminal ? 0.5 : 30)) continue;
    last = now();
    fprintf(stderr, "%s%llu of %llu cases, %llu differences, %.0f cases/s%s", terminal ? "\r" : "", (unsigned long long)n,
            (unsigned long long)o->cases, (unsigned long long)differences, (double)n / (last - start), terminal ? "\033[K" : "\n");
  }
  double seconds = now() - start;
  if (terminal) fputs("\r\033[K", stderr);
  printf("%llu cases in %.1f s, %llu differences\n", (unsigned long long)o->cases, seconds, (unsigned long long)differences);
  return differences;
}

static void summary(bool all, unsigned mnemonics) {
  unsigned seen = 0;
  for (unsigned m = 0; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
    if (!count[m].cases) continue;
    seen++;
    if (all || count[m].differences)
      printf("  %-14s %9llu cases %9llu with an exception %9llu differences\n", ZydisMnemonicGetString((ZydisMnemonic)m),
             (unsigned long long)count[m].cases, (unsigned long long)count[m].faults, (unsigned long long)count[m].differences);
  }
  printf("%u of %u mnemonics ran\n", seen, mnemonics);
}

int main(int argc, char **argv) {
  struct options o = {.cases = 1000000, .seed = 1, .mode = 64};
  if (!parse(argc, argv, &o) || (o.mode != 16 && o.mode != 32 && o.mode != 64)) {
    usage(stderr);
    return 2;
  }
  if (!o.seed) o.seed = (u64)time(NULL);
  rnd_seed(o.seed);
  engine_v86 = o.v86;
  engine_real = o.real;
  diff_based = o.based;
  u8 *code = host_init(o.mode);
  engine_init(code);
  engine_set_mode(o.mode);
  k.mode = o.mode;
  host_fill_arena();
  if (o.encodings) {
    u64 n = check_encodings();
    printf("%llu encodings refused that the host runs\n", (unsigned long long)n);
    return n != 0;
  }
  unsigned mnemonics = gen_init(o.family, o.mnemonic, o.mode);
  if (!mnemonics) {
    fprintf(stderr, "diff: no such instructions\n");
    return 2;
  }
  if (o.sequences || o.replay) {
    engine_start_sequences(code, o.mode);
    return seq_run(&(struct seq_options){.cases = o.cases, .seed = o.seed, .mode = o.mode, .replay = o.replay, .code = o.code}) != 0;
  }
  printf("seed %llu, %u mnemonics\n", (unsigned long long)o.seed, mnemonics);
  u64 differences = run(&o);
  summary(o.summary, mnemonics);
  print_undefined();
  return differences != 0;
}
