/* The page walk in every paging mode and page size: rights, error codes and CR2, reserved bits, accessed and dirty bits.
 *
 * The host lays out the tables, the guest makes one access and reports it or its page fault; what must come out is predicted from
 * the rules of SDM Vol. 3A 4.6 (rights), 4.7 (error codes) and 4.8 (accessed and dirty flags).
 */
#include <stdio.h>
#include <string.h>
#include "harness.h"

#define P   1ull
#define W   2ull
#define U   4ull
#define A   0x20ull
#define D   0x40ull
#define PS  0x80ull
#define NX  (1ull << 63)
#define RPL 3

#define CR0_WP   0x10000ull
#define CR4_PSE  0x10ull
#define CR4_PAE  0x20ull
#define CR4_PGE  0x80ull
#define CR4_LA57 0x1000ull
#define CR4_SMEP 0x100000ull
#define CR4_SMAP 0x200000ull
#define CR4_PKE  0x400000ull
#define EFER_NX  0x800ull
#define FLAG_AC  0x40000ull

#define ERR_P    1u
#define ERR_W    2u
#define ERR_U    4u
#define ERR_RSVD 8u
#define ERR_I    16u
#define ERR_PK   32u

#define TABLES   0x200000u
#define TARGET   0x300000u /* the frame of the page that is tried; its code reports 1 */
#define DATA_OFF 0x800u    /* data accesses */

struct mode {
  const char *name;
  u8 levels, large; /* tables below the PDPTEs; the highest level that can map a page */
  bool is_long, wide;
  u64 cr4, lin;
};
static const struct mode modes[] = {
    {"32-bit", 2, 2, false, false, CR4_PSE, 0x40000000 + TARGET},
    {"pae", 2, 2, false, true, CR4_PAE, 0x40000000 + TARGET},
    {"4-level", 4, 3, true, true, CR4_PAE, 0x8040000000 + TARGET},
    {"5-level", 5, 3, true, true, CR4_PAE | CR4_LA57, 0x1008040000000 + TARGET},
};
enum { M_32, M_PAE, M_4, M_5 };

/* ---- page tables ---- */

struct paging {
  struct guest *g;
  const struct mode *m;
  unsigned tables;
  unsigned leaf; /* level of the page that is tried */
  struct kvm_sregs base;
};

static unsigned shift_of(const struct mode *m, unsigned level) {
  return 12 + (m->wide ? 9 : 10) * (level - 1);
}
static unsigned entry_size(const struct mode *m) {
  return m->wide ? 8 : 4;
}
static u64 table_new(struct paging *p) {
  return TABLES + 0x1000u * p->tables++;
}
static u64 get(struct paging *p, u64 at) {
  return guest_read(p->g, at, entry_size(p->m));
}
static void put(struct paging *p, u64 at, u64 e) {
  guest_write(p->g, at, entry_size(p->m), e);
}
static u64 frame_of(const struct mode *m, u64 e) {
  return m->wide ? e & 0xffffffffff000ull : e & 0xfffff000;
}

/* The address of the entry of that level that maps lin; tables above it are made. */
static u64 entry_at(struct paging *p, u64 lin, unsigned level) {
  u64 table = TABLES;
  for (unsigned n = p->m->levels + (p->m == &modes[M_PAE]); n >= level; n--) {
    u64 at = table + (lin >> shift_of(p->m, n) & (p->m->wide ? 511 : 1023)) * entry_size(p->m);
    if (n == level) return at;
    if (!get(p, at)) put(p, at, table_new(p) | (n > p->m->levels ? P : P | W | U));
    table = frame_of(p->m, get(p, at));
  }
  return 0;
}

static void map(struct paging *p, u64 lin, u64 gpa, unsigned level, u64 flags) {
  put(p, entry_at(p, lin, level), gpa | flags | P | (level > 1 ? PS : 0));
}

/* Everything at its own address, and the page of `leaf` level at m->lin with all rights. */
static void lay_out(struct paging *p, unsigned leaf) {
  memset(p->g->mem + TABLES, 0, TARGET - TABLES);
  p->tables = 0;
  p->leaf = leaf;
  table_new(p);
  for (u64 at = 0; at < GUEST_MEM; at += 0x1000) map(p, at, at, 1, at >= GUEST_USER && at < 0x20000 ? W | U : W);
  map(p, p->m->lin, TARGET & ~((1ull << shift_of(p->m, leaf)) - 1), leaf, W | U);
}

/* ---- one access ---- */

enum kind { READ, WRITE, RMW, FETCH, N_KINDS };
#define KIND_SIZE 16
static const u8 code[N_KINDS][KIND_SIZE] = {
    [READ] = {0x8a, 0x0b, 0xb0, 1, 0xe6, GUEST_PORT},      /* mov (%rbx), %cl; report 1 */
    [WRITE] = {0x88, 0x0b, 0xb0, 1, 0xe6, GUEST_PORT},     /* mov %cl, (%rbx) */
    [RMW] = {0xf0, 0xf6, 0x03, 0xb0, 1, 0xe6, GUEST_PORT}, /* filled in below */
    [FETCH] = {0xff, 0xe3},                                /* jmp *%rbx */
};
static const u8 rmw[] = {0xf0, 0xfe, 0x03, 0xb0, 1, 0xe6, GUEST_PORT}; /* lock incb (%rbx) */
static const u8 target[] = {0xb0, 1, 0xe6, GUEST_PORT};

struct access {
  enum kind kind;
  bool user, ac;
  bool wp, smep, smap, nxe;
};

static struct paging start(const struct mode *m) {
  struct paging p = {.g = guest_new(), .m = m};
  if (m->is_long)
    guest_long(p.g, GUEST_CODE);
  else
    guest_protected(p.g, GUEST_CODE);
  guest_load(p.g, GUEST_CODE, code, sizeof(code));
  guest_load(p.g, GUEST_CODE + RMW * KIND_SIZE, rmw, sizeof(rmw));
  guest_load(p.g, GUEST_USER, p.g->mem + GUEST_CODE, sizeof(code));
  guest_load(p.g, TARGET, target, sizeof(target));
  lay_out(&p, 1);
  p.base = guest_sregs(p.g);
  p.base.cr0 |= 0x80000000;
  p.base.cr3 = TABLES;
  p.base.cr4 = m->cr4;
  return p;
}

static void set_access(struct paging *p, const struct access *a) {
  struct kvm_sregs s = p->base;
  s.cr0 = (s.cr0 & ~CR0_WP) | (a->wp ? CR0_WP : 0);
  s.cr4 |= (a->smep ? CR4_SMEP : 0) | (a->smap ? CR4_SMAP : 0);
  s.efer = (s.efer & ~EFER_NX) | (a->nxe ? EFER_NX : 0);
  if (a->user) {
    s.cs.selector = p->m->is_long ? SEL_CODE64U : SEL_CODE32U;
    s.ss.selector = SEL_DATA3;
    s.cs.dpl = s.ss.dpl = 3;
  }
  guest_set_sregs(p->g, &s);
  struct kvm_regs r = {.rip = (a->user ? GUEST_USER : GUEST_CODE) + a->kind * KIND_SIZE,
                       .rbx = p->m->lin + (a->kind == FETCH ? 0 : DATA_OFF),
                       .rsp = a->user ? GUEST_STACK3 : GUEST_STACK0,
                       .rflags = 2 | (a->ac ? FLAG_AC : 0)};
  guest_set_regs(p->g, &r);
}

#define NO_FAULT (~0u)

/* Makes the access: NO_FAULT, or the error code of its #PF. */
static u32 try_access(struct paging *p, const struct access *a) {
  set_access(p, a);
  if (guest_run(p->g) < 0 || p->g->run->exit_reason != KVM_EXIT_IO) return EXIT(p->g->run->exit_reason);
  if (p->g->run->io.port == GUEST_PORT) return NO_FAULT;
  u64 rip = guest_regs(p->g).rip;
  if (rip != GUEST_STUBS + 14 * 16) return TRAP((unsigned)(rip - GUEST_STUBS) / 16);
  CHECK_EQ(guest_sregs(p->g).cr2, p->m->lin + (a->kind == FETCH ? 0 : DATA_OFF));
  return (u32)guest_stack(p->g, 0, p->m->is_long ? 8 : 4);
}

/* ---- what must come out ---- */

static u32 predict_rights(const struct access *a, bool writable, bool user, bool nx) {
  bool write = a->kind == WRITE || a->kind == RMW, fetch = a->kind == FETCH;
  if (a->user) return user && (!write || writable) && !(fetch && nx);
  if (fetch) return !nx && !(a->smep && user);
  if (user && a->smap && !a->ac) return false;
  return !write || writable || !a->wp;
}

static u32 predict(struct paging *p, const struct access *a, const u64 *e) {
  bool writable = true, user = true, nx = false;
  u32 err = (a->kind == WRITE || a->kind == RMW ? ERR_W : 0) | (a->user ? ERR_U : 0);
  if (a->kind == FETCH && (a->smep || (a->nxe && p->m->wide))) err |= ERR_I;
  for (unsigned level = p->m->levels; level >= p->leaf; level--) {
    if (!(e[level] & P)) return err;
    if (p->m->wide && (e[level] & NX) && !a->nxe) return err | ERR_P | ERR_RSVD;
    writable &= (e[level] & W) != 0;
    user &= (e[level] & U) != 0;
    nx |= p->m->wide && (e[level] & NX);
  }
  return predict_rights(a, writable, user, nx) ? NO_FAULT : err | ERR_P;
}

/* 4.8: a completed access sets A in every entry used, a write D in the last; a faulting one sets none. */
static void check_flags(struct paging *p, const struct access *a, const u64 *at, const u64 *before, bool fault) {
  for (unsigned level = p->m->levels; level >= p->leaf; level--) {
    u64 want = before[level];
    if (!fault) want |= A | (level == p->leaf && (a->kind == WRITE || a->kind == RMW) ? D : 0);
    CHECK_EQ(get(p, at[level]), want);
  }
}

static void one(struct paging *p, const struct access *a) {
  u64 at[6], e[6];
  for (unsigned level = p->m->levels; level >= p->leaf; level--) e[level] = get(p, at[level] = entry_at(p, p->m->lin, level));
  u32 want = predict(p, a, e), got = try_access(p, a);
  CHECK_EQ(got, want);
  check_flags(p, a, at, e, want != NO_FAULT);
  if (got != want)
    fprintf(stderr, "  %s, leaf %u: kind %d user %d ac %d wp %d smep %d smap %d nxe %d, leaf entry %#llx\n", p->m->name, p->leaf,
            a->kind, a->user, a->ac, a->wp, a->smep, a->smap, a->nxe, (unsigned long long)e[p->leaf]);
  for (unsigned level = p->m->levels; level >= p->leaf; level--) put(p, at[level], e[level]);
}

/* All accesses under all controls that matter for the entries as they are. */
static void all_accesses(struct paging *p, bool nx) {
  for (unsigned n = 0; n < 16; n++) {
    struct access a = {.wp = n & 1, .smep = n & 2, .smap = n & 4, .nxe = n & 8};
    if (!nx && a.nxe != p->m->is_long) continue; /* NXE matters for NX, and for the I flag */
    for (a.kind = 0; a.kind < N_KINDS; a.kind++) {
      a.ac = false;
      a.user = true;
      one(p, &a);
      a.user = false;
      one(p, &a);
      a.ac = true;
      if (a.smap) one(p, &a);
    }
  }
}

/* Each level in turn lacks what the others allow. */
static void rights_of_leaf(struct paging *p, unsigned leaf) {
  lay_out(p, leaf);
  for (unsigned level = leaf; level <= p->m->levels; level++) {
    u64 at = entry_at(p, p->m->lin, level), whole = get(p, at);
    for (unsigned n = 0; n < 16; n++) {
      u64 e = whole & ~((n & 1 ? P : 0) | (n & 2 ? W : 0) | (n & 4 ? U : 0));
      if ((n & 8) && !p->m->wide) continue;
      if ((n & 1) && n != 1) continue;
      put(p, at, e | (n & 8 ? NX : 0));
      all_accesses(p, n & 8);
    }
    put(p, at, whole);
  }
}

static void rights(const struct mode *m) {
  struct paging p = start(m);
  for (unsigned leaf = 1; leaf <= m->large; leaf++) rights_of_leaf(&p, leaf);
  guest_free(p.g);
}
static void rights_32(void) {
  rights(&modes[M_32]);
}
static void rights_pae(void) {
  rights(&modes[M_PAE]);
}
static void rights_4(void) {
  rights(&modes[M_4]);
}
static void rights_5(void) {
  rights(&modes[M_5]);
}

GUEST_MAIN({"rights-32", rights_32}, {"rights-pae", rights_pae}, {"rights-4-level", rights_4}, {"rights-5-level", rights_5})
