/* Sequences of instructions, run three ways: on the host CPU, in the interpreter, and as translated code, which runs twice so
 * that its blocks have been linked.
 *
 * A case follows from a number alone (--replay).  One that differs is made as short as it can be while it differs in the same
 * way.
 */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "diff.h"
#include "x86/regs.h"

#define REPORTS 2 /* per last instruction */
#define TRIALS  6 /* of translated code: warming up, translated, linked; then with pages that the TLB does not know */
#define COLD    3 /* the first of these */

enum verdict { SAME, HOST_DIFFERS, TRANSLATION_DIFFERS, HOLE_DIFFERS, CRASHED, ENDLESS };

static u8 blank[ARENA_SIZE], initial[ARENA_SIZE], interpreted[ARENA_SIZE]; /* contents of the arena's writable pages */
static struct sequence seq;
static struct diff_state host, interpreter, translator, judged /* by compare.c, which may take the host's part */;
static u64 faults, holes, translations;
static sigjmp_buf crash;

/* ---- memory ---- */

/* In real mode all can be written. */
static void copy_pages(u8 *to, const u8 *from) {
  bool all = engine_real && to != (u8 *)ARENA_BASE && from != (u8 *)ARENA_BASE;
  for (unsigned p = 0; p < ARENA_PAGES; p++)
    if (all || arena_map[p] == PAGE_RW) memcpy(to + p * PAGE_SIZE, from + p * PAGE_SIZE, PAGE_SIZE);
}

static bool pages_equal(const u8 *a, const u8 *b) {
  for (unsigned p = 0; p < ARENA_PAGES; p++)
    if (arena_map[p] == PAGE_RW && memcmp(a + p * PAGE_SIZE, b + p * PAGE_SIZE, PAGE_SIZE)) return false;
  return true;
}

/* ---- one case ---- */

static void make_case(u64 number, unsigned mode) {
  rnd_seed(number);
  copy_pages((u8 *)ARENA_BASE, blank);
  copy_pages(engine_arena, blank);
  seq.k.mode = mode;
  seq_make(&seq);
  copy_pages(initial, (u8 *)ARENA_BASE);
}

/* The instruction that a run ended at, for the rules of compare.c. */
static void blame(u64 ip) {
  struct diff_case *k = &seq.k;
  memset(&k->insn, 0, sizeof(k->insn));
  k->operand = 0;
  for (unsigned n = 0; n < seq.n; n++) {
    if (k->at - diff_code_base(k->mode) + seq.offset[n] != ip) continue;
    memcpy(k->code, seq.insn[n].code, sizeof(k->code));
    if (!gen_decode(k)) memset(&k->insn, 0, sizeof(k->insn));
  }
}

static void on_crash(void) {
  siglongjmp(crash, 1);
}

static void interpret(void) {
  copy_pages(engine_arena, initial);
  engine_run_placed(ENGINE_INTERPRETER, &seq.k, &interpreter);
  copy_pages(interpreted, engine_arena);
}

static bool translation_same(void) {
  copy_pages(engine_arena, initial);
  engine_run_placed(ENGINE_TRANSLATOR, &seq.k, &translator);
  return engine_same_segments() && compare_engines(&seq.k, &interpreter, &translator) && pages_equal(engine_arena, interpreted);
}

/* Where memory is missing translated code may not know flags that the instruction there writes: what counts is how it goes on. */
static bool hole_same(void) {
  static struct diff_state i, t;
  copy_pages(engine_arena, initial);
  bool hit = engine_run_with_hole(ENGINE_INTERPRETER, &seq.k, seq.hole, &i, &interpreter);
  copy_pages(interpreted, engine_arena);
  copy_pages(engine_arena, initial);
  if (engine_run_with_hole(ENGINE_TRANSLATOR, &seq.k, seq.hole, &t, &translator) != hit) return false;
  holes += hit;
  bool same = compare_engines(&seq.k, &interpreter, &translator) && pages_equal(engine_arena, interpreted);
  if (!same || !hit) return same;
  interpreter = i;
  translator = t;
  t.rflags = (t.rflags & ~(u64)FL_ARITH) | (i.rflags & FL_ARITH);
  return compare_engines(&seq.k, &i, &t);
}

static bool host_same(void) {
  copy_pages((u8 *)ARENA_BASE, initial);
  host_run_placed(&seq.k, &host);
  judged = interpreter;
  return compare_placed(&seq.k, &host, &judged);
}

static enum verdict run(void) {
  host_place(seq.k.at, seq.bytes, seq.len);
  if (sigsetjmp(crash, 1)) {
    engine_reset();
    return CRASHED;
  }
  host_on_crash = on_crash;
  interpret();
  if (interpreter.vector >= DIFF_ENDLESS) return ENDLESS;
  blame(interpreter.ip);
  if (!engine_v86 && !host_same()) return HOST_DIFFERS;
  for (unsigned n = 0; n < TRIALS; n++) {
    engine_cool(n < COLD ? 0 : seq.cold >> 8 * (n - COLD) & 0xff);
    if (!translation_same()) return TRANSLATION_DIFFERS;
    engine_warm(seq.k.at, seq.len);
  }
  faults += interpreter.vector >= 0;
  if (seq.hole && !hole_same()) return HOLE_DIFFERS;
  host_on_crash = NULL;
  return SAME;
}

/* ---- shorter ---- */

static void take_out(struct sequence *s, unsigned n) {
  memmove(&s->insn[n], &s->insn[n + 1], (s->n - n - 1) * sizeof(s->insn[0]));
  s->n--;
  for (unsigned i = 0; i < s->n; i++)
    if (s->insn[i].target > n) s->insn[i].target--;
}

static void shorten(enum verdict v) {
  bool again = true;
  while (again) {
    again = false;
    for (unsigned n = seq.n; n-- > 0;) {
      struct sequence before = seq;
      take_out(&seq, n);
      seq_layout(&seq);
      if (run() == v)
        again = true;
      else
        seq = before;
    }
  }
  seq_layout(&seq);
  run();
}

/* ---- telling ---- */

static void print_code(void) {
  for (unsigned n = 0; n < seq.n; n++) {
    if (n) printf(",");
    for (unsigned b = 0; b < seq.insn[n].len; b++) printf("%02x", seq.insn[n].code[b]);
  }
}

static void print_instructions(void) {
  struct diff_case k = seq.k;
  ZydisFormatter f;
  ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_INTEL);
  for (unsigned n = 0; n < seq.n; n++) {
    char text[128] = "?";
    u64 at = k.at - diff_code_base(k.mode) + seq.offset[n];
    memcpy(k.code, seq.insn[n].code, sizeof(k.code));
    if (gen_decode(&k))
      ZydisFormatterFormatInstruction(&f, &k.insn, k.ops, k.insn.operand_count_visible, text, sizeof(text), at, NULL);
    printf("    %llx: %s\n", (unsigned long long)at, text);
  }
}

static unsigned last_mnemonic(void) {
  struct diff_case k = seq.k;
  memcpy(k.code, seq.insn[seq.n ? seq.n - 1 : 0].code, sizeof(k.code));
  return seq.n && gen_decode(&k) ? k.insn.mnemonic : 0;
}

static void tell(enum verdict v, u64 number) {
  static const char *const what[] = {[HOST_DIFFERS] = "host and interpreter differ",
                                     [TRANSLATION_DIFFERS] = "interpreter and translated code differ",
                                     [HOLE_DIFFERS] = "interpreter and translated code differ where memory is missing",
                                     [CRASHED] = "crash"};
  static u8 told[ZYDIS_MNEMONIC_MAX_VALUE + 1][CRASHED + 1];
  if (told[last_mnemonic()][v]++ >= REPORTS) {
    told[last_mnemonic()][v] = REPORTS;
    return;
  }
  printf("%s: diff --mode %u --replay %#llx --code ", what[v], seq.k.mode, (unsigned long long)number);
  print_code();
  printf("\n");
  print_instructions();
  diff_side[0] = v == HOST_DIFFERS ? "host" : "interpreter";
  diff_side[1] = v == HOST_DIFFERS ? "interpreter" : "translator";
  if (v == HOLE_DIFFERS) printf("    missing: the page at %llx\n", (unsigned long long)(ARENA_BASE + seq.hole * PAGE_SIZE));
  if (v != HOST_DIFFERS) copy_pages((u8 *)ARENA_BASE, interpreted);
  if (v != CRASHED)
    report_placed(&seq.k, v == HOST_DIFFERS ? &host : &interpreter, v == HOST_DIFFERS ? &interpreter : &translator);
  fflush(stdout);
}

/* ---- all ---- */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* "48ffc0,75fb": every instruction as it is. */
static void replace_code(const char *hex) {
  seq.n = 0;
  while (*hex && seq.n < SEQ_MAX) {
    struct seq_insn *i = &seq.insn[seq.n++];
    unsigned byte;
    *i = (struct seq_insn){0};
    for (; i->len < 15 && sscanf(hex, "%2x", &byte) == 1 && *hex != ','; hex += 2) i->code[i->len++] = (u8)byte;
    hex += *hex == ',';
  }
  seq_layout(&seq);
}

static void start(void) {
  rnd_seed(0x5eed);
  for (u64 n = 0; n < ARENA_SIZE; n += 8) *(u64 *)(blank + n) = rnd();
  host_start_watch();
}

static u64 replay(const struct seq_options *o) {
  u64 number = strtoull(o->replay, NULL, 0);
  make_case(number, o->mode);
  if (o->code) replace_code(o->code);
  enum verdict v = run();
  if (v == SAME || v == ENDLESS) {
    print_instructions();
    printf("%s\n", v == SAME ? "no difference" : "does not end");
    return 0;
  }
  if (!o->code) shorten(v);
  tell(v, number);
  return 1;
}

static u64 number_of(u64 seed, u64 n) {
  return (seed * 0x9e3779b97f4a7c15ull ^ n * 0xbf58476d1ce4e5b9ull) >> 8;
}

u64 seq_run(const struct seq_options *o) {
  u64 differences = 0, endless = 0;
  double begin = now(), last = begin;
  start();
  if (o->replay) return replay(o);
  printf("sequences, seed %llu\n", (unsigned long long)o->seed);
  for (u64 n = 0; n < o->cases; n++) {
    u64 number = number_of(o->seed, n);
    if (!(n & 0xff)) engine_forget();
    make_case(number, o->mode);
    enum verdict v = run();
    endless += v == ENDLESS;
    if (v == SAME) translations += engine_translated(seq.k.at, seq.len);
    if (v != SAME && v != ENDLESS) {
      differences++;
      shorten(v);
      tell(v, number);
    }
    if ((n & 0xff) || now() - last < 30) continue;
    last = now();
    fprintf(stderr, "%llu of %llu sequences, %llu differences, %.0f/s\n", (unsigned long long)n, (unsigned long long)o->cases,
            (unsigned long long)differences, (double)n / (last - begin));
  }
  printf("%llu sequences in %.1f s, %llu differences; %llu with an exception, %llu with missing memory, %llu without end; %llu "
         "blocks translated\n",
         (unsigned long long)o->cases, now() - begin, (unsigned long long)differences, (unsigned long long)faults,
         (unsigned long long)holes, (unsigned long long)endless, (unsigned long long)translations);
  print_undefined();
  if (!translations) puts("nothing was translated");
  return differences + (!translations && o->cases);
}
