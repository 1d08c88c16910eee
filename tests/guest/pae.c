/* The four PDPTE registers of PAE paging: what loads them, what does not, and what is #GP instead (SDM Vol. 3A 4.4.1). */
#include "harness.h"

#define PDPT 0x200ee0 /* aligned to 32 bytes, not to a page */
#define PD1  0x201000 /* the first GiB at its own address */
#define PD2  0x202000 /* 2 MiB higher */
#define SEEN 0x40060000u

#define CR0_NW    0x20000000u
#define CR0_CD    0x40000000u
#define CR0_PG    0x80000000u
#define CR4_PSE   0x10u
#define CR4_PAE   0x20u
#define CR4_PGE   0x80u
#define CR4_SMEP  0x100000u
#define CR4_SMAP  0x200000u
#define CR4_PKE   0x400000u
#define CR4_PCIDE 0x20000u

/* The host starts it at one of these, with EAX; EBX is what is seen through the second PDPTE register: INVLPG, as a cached
 * translation may be older than the register. */
enum { MOV_CR0 = 0x00, MOV_CR3 = 0x10, MOV_CR4 = 0x20, SWITCH = 0x30, LOOK = 0x40 };
GUEST_BLOB(moves, ".code32\n"
                  "mov %eax, %cr0\n jmp 1f\n .balign 16\n"
                  "mov %eax, %cr3\n jmp 1f\n .balign 16\n"
                  "mov %eax, %cr4\n jmp 1f\n .balign 16\n"
                  "ljmp $0x68, $0\n .balign 16\n"
                  "1: invlpg 0x40060000\n"
                  "mov 0x40060000, %ebx\n" REPORT(1));

static u64 pdpte(struct guest *g, unsigned n) {
  return guest_read(g, PDPT + 8 * n, 8);
}
static void set_pdpte(struct guest *g, unsigned n, u64 e) {
  guest_write(g, PDPT + 8 * n, 8, e);
}

static struct guest *start(void) {
  struct guest *g = guest_new();
  guest_cpuid(g, 0x80000008, 0, 0xff, 40);
  guest_protected(g, GUEST_CODE);
  guest_load_blob(g, moves);
  for (unsigned n = 0; n < 4; n++) {
    guest_write(g, PD1 + 8 * n, 8, n << 21 | 0x83);
    guest_write(g, PD2 + 8 * n, 8, (n + 1) << 21 | 0x83);
  }
  set_pdpte(g, 0, PD1 | 1);
  set_pdpte(g, 1, PD1 | 1);
  guest_write(g, 0x60000, 4, 1);
  guest_write(g, 0x260000, 4, 2);
  struct kvm_sregs s = guest_sregs(g);
  s.cr0 |= CR0_PG;
  s.cr3 = PDPT;
  s.cr4 |= CR4_PAE;
  guest_set_sregs(g, &s);
  return g;
}

static unsigned run(struct guest *g, unsigned entry, u64 eax) {
  struct kvm_regs r = guest_regs(g);
  r.rip = GUEST_CODE + entry;
  r.rax = eax;
  r.rsp = GUEST_STACK0;
  r.rbx = 0;
  guest_set_regs(g, &r);
  return guest_next(g);
}

/* What the second PDPTE register leads to: 1 or 2. */
static u64 seen(struct guest *g) {
  CHECK_EQ(run(g, LOOK, 0), 1);
  return guest_regs(g).rbx;
}

static u64 value_of(struct guest *g, unsigned entry) {
  struct kvm_sregs s = guest_sregs(g);
  return entry == MOV_CR0 ? s.cr0 : entry == MOV_CR3 ? s.cr3 : s.cr4;
}

static const struct {
  u8 entry;
  bool loads;
  u32 change;
} ops[] = {
    {MOV_CR3, true, 0},        {MOV_CR0, true, CR0_CD},   {MOV_CR0, true, CR0_CD | CR0_NW},
    {MOV_CR4, true, CR4_PSE},  {MOV_CR4, true, CR4_PGE},  {MOV_CR4, true, CR4_SMEP},
    {MOV_CR0, false, 8},       {MOV_CR0, false, 0x10000}, {MOV_CR0, false, 0x40000},
    {MOV_CR0, false, 0},       {MOV_CR4, false, 0},       {MOV_CR4, false, 4},
    {MOV_CR4, false, 0x200},   {MOV_CR4, false, 0x100},   {MOV_CR4, false, CR4_SMAP},
    {MOV_CR4, false, CR4_PKE},
};
#define N_OPS (sizeof(ops) / sizeof(ops[0]))

static bool has_pku(struct guest *g) {
  return guest_shows(g, 7, 2, 3);
}

/* How often the table was read, of four entries each, since the last question. */
static u64 table_reads(struct guest *g) {
  static u64 last;
  u64 now = guest_stat(g->vcpu, "pdpte_loads"), reads = now - last;
  last = now;
  return reads;
}

static void loads(void) {
  struct guest *g = start();
  for (unsigned n = 0; n < N_OPS; n++) {
    if (ops[n].change == CR4_PKE && !has_pku(g)) continue;
    for (unsigned twice = 0; twice < 2; twice++) { /* the bit goes on, and off again */
      set_pdpte(g, 1, PD1 | 1);
      CHECK_EQ(run(g, MOV_CR3, PDPT), 1);
      CHECK_EQ(guest_regs(g).rbx, 1);
      set_pdpte(g, 1, PD2 | 1);
      CHECK_EQ(seen(g), 1);
      table_reads(g);
      CHECK_EQ(run(g, ops[n].entry, value_of(g, ops[n].entry) ^ ops[n].change), 1);
      CHECK_EQ(guest_regs(g).rbx, ops[n].loads ? 2 : 1);
      CHECK_EQ(table_reads(g), ops[n].loads);
    }
  }
  CHECK_EQ(pdpte(g, 0), PD1 | 1); /* no accessed bit in these */
  guest_free(g);
}

/* Paging goes off and on. */
static void paging_on(void) {
  struct guest *g = start();
  CHECK_EQ(seen(g), 1);
  u64 cr0 = value_of(g, MOV_CR0);
  set_pdpte(g, 1, PD2 | 1);
  run(g, MOV_CR0, cr0 & ~(u64)CR0_PG);
  CHECK_EQ(run(g, MOV_CR0, cr0), 1);
  CHECK_EQ(guest_regs(g).rbx, 2);
  guest_free(g);
}

/* A present PDPTE with a reserved bit: #GP, and neither the control register nor the PDPTEs change. */
static void refused(void) {
  static const struct {
    u8 entry;
    u32 change;
  } how[] = {{MOV_CR3, 0x10}, {MOV_CR0, CR0_CD}, {MOV_CR4, CR4_PGE}};
  struct guest *g = start();
  for (unsigned bit = 1; bit < 64; bit++) {
    bool reserved = bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= 40;
    if (!reserved && bit >= 12) continue;
    unsigned k = bit % 3;
    u64 before = value_of(g, how[k].entry);
    set_pdpte(g, 1, PD2 | 1);
    set_pdpte(g, 3, PD1 | 1 | 1ull << bit);
    CHECK_EQ(run(g, how[k].entry, before ^ how[k].change), reserved ? TRAP(13) : 1);
    if (reserved) {
      CHECK_EQ(guest_stack(g, 0, 4), 0);
      CHECK_EQ(guest_stack(g, 1, 4), GUEST_CODE + how[k].entry);
      CHECK_EQ(value_of(g, how[k].entry), before);
    }
    CHECK_EQ(seen(g), reserved ? 1 : 2);
    set_pdpte(g, 3, 1ull << bit); /* not present: anything goes */
    CHECK_EQ(run(g, MOV_CR3, PDPT), 1);
    set_pdpte(g, 1, PD1 | 1);
    set_pdpte(g, 3, 0);
    CHECK_EQ(run(g, MOV_CR3, PDPT), 1);
  }
  guest_free(g);
}

/* What loads nothing finds nothing wrong, and what is wrong in itself comes before the PDPTEs. */
static void not_looked_at(void) {
  static const u32 quiet[] = {CR4_SMAP, CR4_PKE, 0x200};
  struct guest *g = start();
  u64 before = value_of(g, MOV_CR4);
  set_pdpte(g, 1, PD2 | 3); /* bit 1 is reserved */
  for (unsigned n = 0; n < sizeof(quiet) / sizeof(quiet[0]); n++) {
    if (quiet[n] == CR4_PKE && !has_pku(g)) continue;
    CHECK_EQ(run(g, MOV_CR4, before ^ quiet[n]), 1);
    CHECK_EQ(value_of(g, MOV_CR4), before ^ quiet[n]);
    CHECK_EQ(run(g, MOV_CR4, before), 1);
  }
  CHECK_EQ(run(g, MOV_CR4, before ^ CR4_PGE), TRAP(13));
  CHECK_EQ(value_of(g, MOV_CR4), before);
  set_pdpte(g, 1, PD2 | 1);
  table_reads(g);
  CHECK_EQ(run(g, MOV_CR4, before ^ (CR4_PGE | CR4_PCIDE)), TRAP(13)); /* PCIDs need long mode */
  CHECK_EQ(table_reads(g), 0);
  CHECK_EQ(seen(g), 1);
  guest_free(g);
}

/* An absent PDPTE: #PF, not present. */
static void absent(void) {
  struct guest *g = start();
  set_pdpte(g, 1, PD1);
  CHECK_EQ(run(g, MOV_CR3, PDPT), TRAP(14));
  CHECK_EQ(guest_stack(g, 0, 4), 0);
  CHECK_EQ(guest_sregs(g).cr2, SEEN);
  guest_free(g);
}

/* Bits 4:0 of CR3 are not part of the address; those above MAXPHYADDR cannot be written with 32 bits. */
static void low_bits(void) {
  struct guest *g = start();
  set_pdpte(g, 1, PD2 | 1);
  CHECK_EQ(run(g, MOV_CR3, PDPT | 0x1f), 1);
  CHECK_EQ(guest_regs(g).rbx, 2);
  guest_free(g);
}

/* A task switch loads CR3 from the TSS, and the PDPTEs with it. */
static void task_switch(void) {
  static const u8 fields[] = {0x50, 0x54, 0x48, 0x58, 0x5c}; /* SS, DS, ES, FS, GS */
  struct guest *g = start();
  guest_write(g, GUEST_TSS2 + 0x1c, 4, PDPT + 0x40);
  guest_write(g, GUEST_TSS2 + 0x20, 4, GUEST_CODE + LOOK);
  guest_write(g, GUEST_TSS2 + 0x24, 4, 2);
  guest_write(g, GUEST_TSS2 + 0x38, 4, GUEST_STACK1);
  guest_write(g, GUEST_TSS2 + 0x4c, 4, SEL_CODE32);
  for (unsigned n = 0; n < sizeof(fields); n++) guest_write(g, GUEST_TSS2 + fields[n], 4, SEL_DATA);
  set_pdpte(g, 8, PD1 | 1);
  set_pdpte(g, 9, PD2 | 1);
  CHECK_EQ(run(g, SWITCH, 0), 1);
  CHECK_EQ(guest_regs(g).rbx, 2);
  CHECK_EQ(guest_sregs(g).tr.selector, SEL_TSS2);
  CHECK_EQ(guest_sregs(g).cr3, PDPT + 0x40);
  guest_free(g);
}

GUEST_MAIN({"loads", loads}, {"paging-on", paging_on}, {"refused", refused}, {"not-looked-at", not_looked_at}, {"absent", absent},
           {"low-bits", low_bits}, {"task-switch", task_switch})
