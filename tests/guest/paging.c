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
#define KIND_SIZE  16
#define KEYED_CODE 0x100 /* the same behind WRPKRU */
/* The access, and the report of a 1. */
static const struct {
  u8 size, bytes[7];
} code[N_KINDS] = {
    [READ] = {6, {0x8a, 0x0b, 0xb0, 1, 0xe6, GUEST_PORT}},      /* mov (%rbx), %cl */
    [WRITE] = {6, {0x88, 0x0b, 0xb0, 1, 0xe6, GUEST_PORT}},     /* mov %cl, (%rbx) */
    [RMW] = {7, {0xf0, 0xfe, 0x03, 0xb0, 1, 0xe6, GUEST_PORT}}, /* lock incb (%rbx) */
    [FETCH] = {2, {0xff, 0xe3}},                                /* jmp *%rbx */
};
static const u8 wrpkru[] = {0x0f, 0x01, 0xef};
static const u8 target[] = {0xb0, 1, 0xe6, GUEST_PORT};

struct access {
  enum kind kind;
  bool user, ac;
  bool wp, smep, smap, nxe;
  bool keyed; /* CR4.PKE, with this PKRU */
  u32 pkru;
};

static void load_code(struct guest *g, u64 at) {
  for (unsigned k = 0; k < N_KINDS; k++) {
    guest_load(g, at + k * KIND_SIZE, code[k].bytes, code[k].size);
    guest_load(g, at + KEYED_CODE + k * KIND_SIZE, wrpkru, sizeof(wrpkru));
    guest_load(g, at + KEYED_CODE + k * KIND_SIZE + sizeof(wrpkru), code[k].bytes, code[k].size);
  }
}

static void set_features(struct guest *g, unsigned maxphyaddr, bool gbpages) {
  guest_cpuid(g, 0x80000008, 0, 0xff, maxphyaddr);
  guest_cpuid(g, 0x80000001, 3, gbpages ? 0 : 1u << 26, 0);
}

static struct paging start_with(const struct mode *m, unsigned maxphyaddr, bool gbpages) {
  struct paging p = {.g = guest_new(), .m = m};
  set_features(p.g, maxphyaddr, gbpages);
  if (m->is_long)
    guest_long(p.g, GUEST_CODE);
  else
    guest_protected(p.g, GUEST_CODE);
  load_code(p.g, GUEST_CODE);
  load_code(p.g, GUEST_USER);
  guest_load(p.g, TARGET, target, sizeof(target));
  lay_out(&p, 1);
  p.base = guest_sregs(p.g);
  p.base.cr0 |= 0x80000000;
  p.base.cr3 = TABLES;
  p.base.cr4 = m->cr4;
  return p;
}

static struct paging start(const struct mode *m) {
  return start_with(m, 46, true);
}

static void set_access(struct paging *p, const struct access *a) {
  struct kvm_sregs s = p->base;
  s.cr0 = (s.cr0 & ~CR0_WP) | (a->wp ? CR0_WP : 0);
  s.cr4 |= (a->smep ? CR4_SMEP : 0) | (a->smap ? CR4_SMAP : 0) | (a->keyed ? CR4_PKE : 0);
  s.efer = (s.efer & ~EFER_NX) | (a->nxe ? EFER_NX : 0);
  if (a->user) {
    s.cs.selector = p->m->is_long ? SEL_CODE64U : SEL_CODE32U;
    s.ss.selector = SEL_DATA3;
    s.cs.dpl = s.ss.dpl = 3;
  }
  guest_set_sregs(p->g, &s);
  struct kvm_regs r = {.rip = (a->user ? GUEST_USER : GUEST_CODE) + (a->keyed ? KEYED_CODE : 0) + a->kind * KIND_SIZE,
                       .rax = a->pkru,
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

/* The error code of a fault for rights. */
static u32 access_error(struct paging *p, const struct access *a) {
  u32 err = (a->kind == WRITE || a->kind == RMW ? ERR_W : 0) | (a->user ? ERR_U : 0);
  return err | (a->kind == FETCH && (a->smep || (a->nxe && p->m->wide)) ? ERR_I : 0);
}

static u32 predict(struct paging *p, const struct access *a, const u64 *e) {
  bool writable = true, user = true, nx = false;
  u32 err = access_error(p, a);
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

/* ---- reserved bits: 4.3 to 4.5, the tables of each entry's format ---- */

/* Whether a bit of an entry is reserved; the page is mapped at level leaf. */
static bool reserved(const struct mode *m, unsigned level, unsigned leaf, unsigned bit, unsigned maxphyaddr, bool gbpages) {
  bool large = level == leaf && leaf > 1;
  if (!m->wide) {
    unsigned width = maxphyaddr < 40 ? maxphyaddr : 40; /* 4 MiB pages have this many address bits at most */
    return large && bit >= width - 19 && bit <= 21;
  }
  if (bit >= maxphyaddr && bit <= 51) return true;
  if (!m->is_long && bit >= 52 && bit <= 62) return true;
  if (bit == 7) return level >= 4 || (level == 3 && (!gbpages || leaf < 3));
  return large && bit >= 13 && bit < shift_of(m, leaf);
}

/* Bits that mean something else, or another address. */
static bool not_tried(const struct mode *m, unsigned level, unsigned leaf, unsigned bit, bool is_reserved) {
  if (bit < 3 || bit == 5 || bit == 6 || bit == 63) return true;
  if (is_reserved) return false;
  if (bit == 7) return level > 1;
  unsigned address = level == leaf && leaf > 1 ? 13 : 12;
  return bit >= address && bit < 52 && (m->wide || bit < 32);
}

static u32 try_entry(struct paging *p, u64 at, u64 e, const struct access *a) {
  u64 old = get(p, at);
  put(p, at, e);
  u32 got = try_access(p, a);
  put(p, at, old);
  return got;
}

static void reserved_bits(struct paging *p, unsigned maxphyaddr, bool gbpages) {
  struct access read = {.kind = READ, .wp = true, .nxe = true}, write = {.kind = WRITE, .user = true, .wp = true, .nxe = true};
  for (unsigned level = p->leaf; level <= p->m->levels; level++) {
    u64 at = entry_at(p, p->m->lin, level), e = get(p, at);
    for (unsigned bit = 3; bit < 8 * entry_size(p->m); bit++) {
      bool rsvd = reserved(p->m, level, p->leaf, bit, maxphyaddr, gbpages);
      if (bit == 7 && level == 3 && p->leaf < 3 && gbpages) continue; /* makes it a 1 GiB page */
      if (not_tried(p->m, level, p->leaf, bit, rsvd)) continue;
      u64 with = e | 1ull << bit;
      u32 got = try_entry(p, at, with, &read);
      CHECK_EQ(got, rsvd ? ERR_P | ERR_RSVD : NO_FAULT);
      if (got != (rsvd ? ERR_P | ERR_RSVD : NO_FAULT))
        fprintf(stderr, "  %s, page of level %u: bit %u of level %u\n", p->m->name, p->leaf, bit, level);
      if (!rsvd) continue;
      CHECK_EQ(try_entry(p, at, with & ~W, &write), ERR_P | ERR_RSVD | ERR_W | ERR_U);
      CHECK_EQ(try_entry(p, at, with & ~P, &write), ERR_W | ERR_U); /* not present: the other bits mean nothing */
    }
  }
}

static void all_reserved_bits(unsigned maxphyaddr, bool gbpages) {
  for (unsigned k = 0; k < sizeof(modes) / sizeof(modes[0]); k++) {
    struct paging p = start_with(&modes[k], maxphyaddr, gbpages);
    for (unsigned leaf = 1; leaf <= p.m->large; leaf++) {
      if (leaf == 3 && !gbpages) continue;
      lay_out(&p, leaf);
      reserved_bits(&p, maxphyaddr, gbpages);
    }
    guest_free(p.g);
  }
}

static void reserved_36(void) {
  all_reserved_bits(36, true);
}
static void reserved_46(void) {
  all_reserved_bits(46, true);
}
static void reserved_52(void) {
  all_reserved_bits(52, true);
}
static void no_gbpages(void) {
  struct paging p = start_with(&modes[M_4], 40, false);
  struct access read = {.kind = READ, .nxe = true};
  lay_out(&p, 3);
  CHECK_EQ(try_access(&p, &read), ERR_P | ERR_RSVD);
  guest_free(p.g);
  all_reserved_bits(40, false);
}

/* ---- protection keys: 4.6.2 ---- */

/* 4.7: the key's part in the fault, whatever else forbids the access. */
static bool key_refuses(const struct access *a, bool user_page, unsigned key) {
  u32 rights = a->pkru >> 2 * key & 3;
  bool write = a->kind == WRITE || a->kind == RMW;
  if (a->kind == FETCH || !user_page) return false;
  return rights & 1 || (rights & 2 && write && (a->user || a->wp));
}

static void one_key(struct paging *p, struct access *a, unsigned key, u64 rights) {
  u64 at = entry_at(p, p->m->lin, p->leaf), whole = get(p, at), e[6];
  for (unsigned level = p->m->levels; level > p->leaf; level--) e[level] = get(p, entry_at(p, p->m->lin, level));
  e[p->leaf] = (whole & ~(W | U)) | rights | (u64)key << 59;
  u32 want = predict(p, a, e);
  if (key_refuses(a, rights & U, key)) want = (want == NO_FAULT ? access_error(p, a) | ERR_P : want) | ERR_PK;
  CHECK_EQ(try_entry(p, at, e[p->leaf], a), want);
}

/* Every right of the key of the page; the other keys allow everything, or nothing. */
static void keys_of_leaf(struct paging *p, unsigned leaf) {
  static const u8 keys[] = {0, 5, 15};
  lay_out(p, leaf);
  for (unsigned n = 0; n < 3 * 4 * 4 * 2; n++) {
    unsigned key = keys[n % 3], rights = n / 3 % 4;
    struct access a = {.nxe = true, .keyed = true};
    a.pkru = (n / 48 ? ~(3u << 2 * key) : 0) | rights << 2 * key;
    for (a.kind = 0; a.kind < N_KINDS; a.kind++)
      for (unsigned k = 0; k < 4; k++) {
        a.user = k & 1;
        a.wp = k & 2;
        one_key(p, &a, key, (n / 12 & 1 ? W : 0) | (n / 24 & 1 ? U : 0));
      }
  }
}

static void keys(const struct mode *m) {
  struct paging p = start(m);
  guest_cpuid(p.g, 7, 2, 0, 1u << 3); /* the engine has the keys on every host */
  for (unsigned leaf = 1; leaf <= m->large; leaf++) keys_of_leaf(&p, leaf);
  guest_free(p.g);
}
static void keys_4(void) {
  keys(&modes[M_4]);
}
static void keys_5(void) {
  keys(&modes[M_5]);
}

/* ---- physical addresses above 4 GiB ---- */

static u8 high[0x1000] __attribute__((aligned(4096)));

static void high_page(const struct mode *m, unsigned leaf, u64 gpa, u64 flags) {
  struct paging p = start_with(m, 52, true);
  struct access read = {.kind = READ, .nxe = true}, write = {.kind = WRITE, .nxe = true};
  guest_add_slot(p.g, 0, gpa + (leaf > 1 ? TARGET & ((1u << shift_of(m, leaf)) - 1) : 0), high, sizeof(high));
  lay_out(&p, leaf);
  put(&p, entry_at(&p, m->lin, leaf), (m->wide ? gpa : 0) | flags | P | W | U | (leaf > 1 ? PS : 0));
  high[DATA_OFF] = 0x5a;
  CHECK_EQ(try_access(&p, &read), NO_FAULT);
  CHECK_EQ(guest_regs(p.g).rcx, 0x5a);
  CHECK_EQ(try_access(&p, &write), NO_FAULT);
  CHECK_EQ(high[DATA_OFF], 0);
  guest_free(p.g);
}

/* 4 MiB pages have address bits 39:32 in bits 20:13 (table 4-4). */
static void pse_36(void) {
  high_page(&modes[M_32], 2, 0x100000000, 1u << 13);
  high_page(&modes[M_32], 2, 0xa500400000, 0x400000 | 0xa5u << 13);
}
static void pae_high(void) {
  high_page(&modes[M_PAE], 1, 0x1234567000, 0);
  high_page(&modes[M_PAE], 2, 0x1200000000, 0);
}
static void long_high(void) {
  high_page(&modes[M_4], 1, 0x2123456789000, 0);
  high_page(&modes[M_4], 2, 0x212345600000, 0);
  high_page(&modes[M_5], 3, 0x212340000000, 0);
}

/* Without CR4.PSE the PS bit means nothing. */
static void no_pse(void) {
  struct paging p = start(&modes[M_32]);
  struct access read = {.kind = READ};
  p.base.cr4 &= ~CR4_PSE;
  u64 at = entry_at(&p, p.m->lin, 2);
  put(&p, at, get(&p, at) | PS);
  CHECK_EQ(try_access(&p, &read), NO_FAULT);
  CHECK_EQ(guest_read(p.g, entry_at(&p, p.m->lin, 1), 4) & A, A);
  guest_free(p.g);
}

GUEST_MAIN({"rights-32", rights_32}, {"rights-pae", rights_pae}, {"rights-4-level", rights_4}, {"rights-5-level", rights_5},
           {"reserved-36", reserved_36}, {"reserved-46", reserved_46}, {"reserved-52", reserved_52}, {"no-gbpages", no_gbpages},
           {"keys-4-level", keys_4}, {"keys-5-level", keys_5}, {"pse-36", pse_36}, {"pae-high", pae_high},
           {"long-high", long_high}, {"no-pse", no_pse})
