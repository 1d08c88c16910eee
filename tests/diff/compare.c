/* Compares what a case left on the host and in the engine, and tells about differences. */
#include <immintrin.h>
#include <stdio.h>
#include <string.h>
#include "diff.h"
#include "x86/x86.h"

#define REPORTS 3 /* per mnemonic */

const char *diff_side[2] = {"host", "engine"};

/* Flags that the manual (Intel SDM Vol. 2) leaves undefined and in which the engine differs from some processor.  Empty rows are not kept: the engine runs
 * arithmetic on the host, so that also undefined flags come out as the host has them. */
static const struct {
  u16 mnemonic;
  u32 flags;
  const char *section;
} undefined[] = {
    {ZYDIS_MNEMONIC_INVALID, 0, ""},
};

void print_undefined(void) {
  puts("not compared: the page offset in CR2 after masked accesses (SDM Vol. 2, VMASKMOV, MASKMOVDQU; Vol. 2A 2.7.7)");
  puts("not compared: exception flags of a dot product that ends in #XM (SDM Vol. 2A DPPS, DPPD)");
  puts("not compared: XRSTOR of components that only the host or only the guest has enabled (SDM Vol. 1 13.8.1)");
  puts("not compared: which of two faults of one instruction comes first, image against page and alignment against limit (SDM Vol. 3A table 6-2)");
  puts("not compared: which parts of the area are reached, CR2 and the part written, after faults of FXSAVE, XSAVE, FNSAVE, FNSTENV and their counterparts (SDM Vol. 1 13.7 to 13.9)");
  for (size_t n = 0; n < ARRAY_SIZE(undefined); n++)
    if (undefined[n].flags)
      printf("not compared: %s flags %#x (%s)\n", ZydisMnemonicGetString((ZydisMnemonic)undefined[n].mnemonic), undefined[n].flags, undefined[n].section);
}

static u64 flags_compared(const struct diff_case *k) {
  u64 mask = FL_ARITH | FL_TF | FL_DF | FL_IF | FL_NT | FL_AC | FL_ID;
  for (size_t n = 0; n < ARRAY_SIZE(undefined); n++)
    if (undefined[n].mnemonic == k->insn.mnemonic) mask &= ~(u64)undefined[n].flags;
  return mask;
}

/* Masked accesses: which of several faulting elements CR2 tells of is the processor's own business (SDM Vol. 2, VMASKMOV, MASKMOVDQU; Vol. 2A 2.7.7). */
static bool is_masked(const ZydisDecodedInstruction *insn) {
  switch (insn->mnemonic) {
  case ZYDIS_MNEMONIC_MASKMOVQ: case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD:
  case ZYDIS_MNEMONIC_VPMASKMOVD: case ZYDIS_MNEMONIC_VPMASKMOVQ: return true;
  default: return insn->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && insn->avx.mask.reg > ZYDIS_REGISTER_K0;
  }
}

/* Many accesses: in which order, and how many are done before the one that faults, is the processor's own business (SDM Vol. 1 13.7 to 13.9;
 * Vol. 2A FXSAVE, FRSTOR). */
static bool is_image(const ZydisDecodedInstruction *insn) {
  const char *f = ext_family(insn);
  if (f && !strcmp(f, "xsave")) return insn->mnemonic != ZYDIS_MNEMONIC_LDMXCSR;
  if (insn->mnemonic == ZYDIS_MNEMONIC_FBSTP || (insn->mnemonic == ZYDIS_MNEMONIC_FSTP && insn->opcode == 0xdb)) return true; /* eight bytes and two */
  return insn->mnemonic == ZYDIS_MNEMONIC_FRSTOR || insn->mnemonic == ZYDIS_MNEMONIC_FNSAVE || insn->mnemonic == ZYDIS_MNEMONIC_FLDENV ||
         insn->mnemonic == ZYDIS_MNEMONIC_FNSTENV;
}

/* A page fault in the kernel's half or the last page below it: the host may have something there, the engine's guest has not. */
static u32 error_mask(const struct diff_case *k, const struct diff_state *s) {
  return s->vector == 14 && (s->cr2 >= 0x7ffffffff000 || is_image(&k->insn)) ? ~1u : ~0u;
}

static bool cr2_equal(const struct diff_case *k, const struct diff_state *h, const struct diff_state *e) {
  if ((h->vector == 14 || e->vector == 14) && (is_image(&k->insn) || h->vector != e->vector)) return true;
  return is_masked(&k->insn) ? h->cr2 >> PAGE_SHIFT == e->cr2 >> PAGE_SHIFT : h->cr2 == e->cr2;
}

/* #GP for what an image holds and #PF for where it lies, or #GP for alignment and #SS for the limit: either may come first (SDM Vol. 3A table 6-2
 * leaves the order of faults of one instruction open). */
static bool vector_equal(const struct diff_case *k, const struct diff_state *h, const struct diff_state *e) {
  if (h->vector == e->vector) return true;
  if ((k->mode == 16 || diff_based) && is_masked(&k->insn) && h->vector >= 12 && e->vector >= 12) return true; /* two halves, one of them behind the limit */
  return (is_image(&k->insn) && h->vector + e->vector == 13 + 14) || ((k->mode == 16 || diff_based) && ext_family(&k->insn) && h->vector + e->vector == 12 + 13);
}

/* Several additions and multiplications: how far they got before an unmasked exception is not said (SDM Vol. 2A DPPS). */
static void cut_dot_product(const struct diff_case *k, struct diff_state *h, struct diff_state *e) {
  unsigned m = k->insn.mnemonic;
  if (h->vector != 19 || (m != ZYDIS_MNEMONIC_DPPS && m != ZYDIS_MNEMONIC_DPPD && m != ZYDIS_MNEMONIC_VDPPS && m != ZYDIS_MNEMONIC_VDPPD)) return;
  e->xsave[24] = (u8)((e->xsave[24] & ~0x3f) | (h->xsave[24] & 0x3f));
}

static bool memory_equal(void) {
  for (unsigned p = 0; p < ARENA_PAGES; p++)
    if (arena_map[p] == PAGE_RW && memcmp((void *)(ARENA_BASE + p * PAGE_SIZE), engine_arena + p * PAGE_SIZE, PAGE_SIZE)) return false;
  return true;
}

/* XINUSE may show a component in use that is in its initial state (SDM Vol. 1 13.6): then the host has saved more than the engine. */
static bool saved_more(const struct diff_case *k) {
  u64 at = (k->operand & ~63ull) + 512, host, engine, page = (at - ARENA_BASE) / PAGE_SIZE;
  if (!is_image(&k->insn) || !k->operand || page >= ARENA_PAGES || arena_map[page] != PAGE_RW) return false;
  memcpy(&host, (void *)at, 8);
  memcpy(&engine, engine_arena + (at - ARENA_BASE), 8);
  return (engine & ~host & 0xe7) == 0 && (host ^ engine) & 0xe7;
}

__attribute__((target("xsave"))) static u64 host_xcr0(void) { return _xgetbv(0); }

/* An image that names components which only one side has enabled: XRSTOR takes it there (SDM Vol. 1 13.8.1). */
static bool foreign_components(const struct diff_case *k) {
  u64 header[2], at = (k->operand & ~63ull) + 512, page = (at - ARENA_BASE) / PAGE_SIZE;
  if ((k->insn.mnemonic != ZYDIS_MNEMONIC_XRSTOR && k->insn.mnemonic != ZYDIS_MNEMONIC_XRSTOR64) || !k->operand || page >= ARENA_PAGES) return false;
  if (arena_map[page] == PAGE_GONE) return false;
  memcpy(header, (void *)at, sizeof(header));
  return (header[0] | header[1]) & (host_xcr0() ^ x86_xcr0_supported());
}

/* The host's contents become the engine's. */
static void copy_memory(void) {
  for (unsigned p = 0; p < ARENA_PAGES; p++)
    if (arena_map[p] == PAGE_RW) memcpy(engine_arena + p * PAGE_SIZE, (void *)(ARENA_BASE + p * PAGE_SIZE), PAGE_SIZE);
}

static void report_memory(void) {
  unsigned shown = 0;
  for (u64 n = 0; n < ARENA_SIZE; n++) {
    if (arena_map[n / PAGE_SIZE] != PAGE_RW) continue;
    u8 a = *(volatile u8 *)(ARENA_BASE + n), b = engine_arena[n];
    if (a != b && shown++ < 16) printf("    [%llx] %s %02x %s %02x\n", (unsigned long long)(ARENA_BASE + n), diff_side[0], a, diff_side[1], b);
    engine_arena[n] = a;
  }
}

static void report_instruction(const struct diff_case *k) {
  ZydisFormatter f;
  char text[128] = "";
  ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_INTEL);
  ZydisFormatterFormatInstruction(&f, &k->insn, k->ops, k->insn.operand_count_visible, text, sizeof(text), k->at, NULL);
  printf("difference: %s  [", text);
  for (unsigned n = 0; n < k->len; n++) printf("%s%02x", n ? " " : "", k->code[n]);
  printf("]\n");
}

/* XSTATE_BV, XCOMP_BV and what follows (SDM Vol. 1 13.4.2). */
static void report_header(const struct diff_case *k) {
  u64 at = (k->operand & ~63ull) + 512, h[8];
  if (!is_image(&k->insn) || !k->operand || (at - ARENA_BASE) / PAGE_SIZE >= ARENA_PAGES || arena_map[(at - ARENA_BASE) / PAGE_SIZE] == PAGE_GONE) return;
  memcpy(h, (void *)at, sizeof(h));
  printf("    image header:");
  for (unsigned n = 0; n < 8; n++) printf(" %llx", (unsigned long long)h[n]);
  printf("\n");
}

static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};

static void report(const struct diff_case *k, const struct diff_state *h, const struct diff_state *e) {
  for (unsigned n = 0; n < 16; n++)
    printf("    %-3s %016llx%s", names[n], (unsigned long long)k->in.gpr[n], n % 4 == 3 ? "\n" : "");
  printf("    flags %llx rip %llx\n", (unsigned long long)k->in.rflags, (unsigned long long)k->at);
  if (h->vector != e->vector || h->error != e->error || h->cr2 != e->cr2)
    printf("    exception: %s %d(%x) cr2 %llx, %s %d(%x) cr2 %llx\n", diff_side[0], h->vector, h->error, (unsigned long long)h->cr2, diff_side[1], e->vector, e->error,
           (unsigned long long)e->cr2);
  if (h->ip != e->ip) printf("    rip: %s %llx %s %llx\n", diff_side[0], (unsigned long long)h->ip, diff_side[1], (unsigned long long)e->ip);
  report_header(k);
  u64 f = (h->rflags ^ e->rflags) & flags_compared(k);
  if (f) printf("    flags: %s %llx %s %llx differ in %llx\n", diff_side[0], (unsigned long long)h->rflags, diff_side[1], (unsigned long long)e->rflags, (unsigned long long)f);
  for (unsigned n = 0; n < diff_gprs(k->mode); n++)
    if (h->gpr[n] != e->gpr[n]) printf("    %s: %s %llx %s %llx\n", names[n], diff_side[0], (unsigned long long)h->gpr[n], diff_side[1], (unsigned long long)e->gpr[n]);
}

/* The upper halves of registers are undefined in compatibility mode (SDM Vol. 1 3.4.1.1). */
static bool registers_equal(const struct diff_case *k, const struct diff_state *h, const struct diff_state *e) {
  u64 mask = k->mode == 64 ? ~0ull : 0xffffffff, differ = h->ip ^ e->ip;
  for (unsigned n = 0; n < diff_gprs(k->mode); n++) differ |= (h->gpr[n] ^ e->gpr[n]) & mask;
  return !differ;
}

bool compare(const struct diff_case *k, struct diff_state *h, struct diff_state *e) {
  static u8 reports[ZYDIS_MNEMONIC_MAX_VALUE + 1];
  if (k->mode != 64 && e->vector == 14 && (e->cr2 & PAGE_MASK) == ENTRY_PAGE) return true; /* the harness's own stack: the engine has none */
  bool far = k->insn.meta.category == ZYDIS_CATEGORY_BITBYTE && e->vector == 14 && e->cr2 - CODE_BASE < CODE_SIZE;
  if (far && h->vector < 0) return true; /* a bit string that reaches the code: only the host may write it */
  if (k->branch && e->vector < 0 && e->ip + diff_code_base(k->mode) - k->at < k->len) { /* into its own bytes, which the host ran */
    copy_memory();
    return true;
  }
  if (is_image(&k->insn) && (h->vector == 14 || e->vector == 14) && (h->vector < 0 || e->vector < 0)) { /* one reached a page that the other let be */
    copy_memory();
    return true;
  }
  if (foreign_components(k)) return true;
  cut_dot_product(k, h, e);
  bool exceptions = vector_equal(k, h, e) && cr2_equal(k, h, e) && (h->vector != e->vector || !((h->error ^ e->error) & error_mask(k, h)));
  bool registers = registers_equal(k, h, e) && !((h->rflags ^ e->rflags) & flags_compared(k));
  bool ext = !k->ext || ext_equal(k, h, e), memory = memory_equal();
  if (exceptions && h->vector >= 0 && is_image(&k->insn)) ext = true; /* partly loaded */
  if (!memory && exceptions && is_image(&k->insn) && (h->vector >= 0 || saved_more(k))) {
    copy_memory();
    memory = true;
  }
  if (exceptions && registers && ext && memory) return true;
  bool tell = reports[k->insn.mnemonic] < REPORTS;
  if (tell) {
    reports[k->insn.mnemonic]++;
    report_instruction(k);
    report(k, h, e);
    if (!ext) ext_report(k, h, e);
    if (!memory) report_memory();
  } else if (!memory) {
    copy_memory();
  }
  return false;
}

/* ---- sequences ---- */

bool compare_placed(const struct diff_case *k, struct diff_state *h, struct diff_state *e) {
  bool image = is_image(&k->insn);
  if (k->mode != 64 && e->vector == 14 && (e->cr2 & PAGE_MASK) == ENTRY_PAGE) return true;
  if (image && (h->vector == 14 || e->vector == 14) && (h->vector < 0 || e->vector < 0)) return true;
  cut_dot_product(k, h, e);
  bool exceptions = vector_equal(k, h, e) && cr2_equal(k, h, e) && (h->vector != e->vector || !((h->error ^ e->error) & error_mask(k, h)));
  if (!exceptions || !registers_equal(k, h, e) || ((h->rflags ^ e->rflags) & flags_compared(k))) return false;
  return (image && h->vector >= 0) || ((!k->ext || ext_equal(k, h, e)) && memory_equal());
}

bool compare_engines(const struct diff_case *k, struct diff_state *a, struct diff_state *b) {
  return a->vector == b->vector && a->error == b->error && a->cr2 == b->cr2 && a->ip == b->ip && !((a->rflags ^ b->rflags) & ~(u64)FL_RF) &&
         !memcmp(a->gpr, b->gpr, sizeof(a->gpr)) && (!k->ext || ext_equal(k, a, b));
}

void report_placed(const struct diff_case *k, const struct diff_state *h, const struct diff_state *e) {
  report(k, h, e);
  if (k->ext) ext_report(k, h, e);
  report_memory();
}
