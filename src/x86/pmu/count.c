/* Counting: totals, the counters as differences of them, overflow. */
#include <Zydis/Zydis.h>
#include "x86/block.h"
#include "x86/cpu/tsc.h"
#include "x86/pmu/pmu.h"

#define LVT_PMC 0x340u

static u64 mask(void) {
  return BIT(PMU_WIDTH) - 1;
}

/* ---- totals ---- */

static unsigned ring(const struct x86_vcpu *c) {
  return c->cpl == 3;
}

/* Counters that are started together start at the same time. */
static u64 tsc(const struct x86_pmu *p) {
  return p->frozen ? p->frozen : x86_host_tsc();
}

static void add_cycles(struct x86_pmu *p, unsigned to) {
  if (!p->entered) return;
  u64 now = tsc(p);
  p->total[PMU_CYCLES][to] += now - p->entered;
  p->entered = now;
}

/* Jumps that may fall through: between JB and JZ, LOOP and LOOPNE, in Zydis' alphabet. */
static bool conditional(unsigned op) {
  return (op >= ZYDIS_MNEMONIC_JB && op <= ZYDIS_MNEMONIC_JZ) || (op >= ZYDIS_MNEMONIC_LOOP && op <= ZYDIS_MNEMONIC_LOOPNE);
}
static u64 branches(const struct x86_insn *from, const struct x86_insn *to) {
  u64 n = 0;
  for (; from < to; from++) n += conditional(from->op);
  return n;
}

/* Instructions of the running block that are done: they are in no total yet. */
static u64 within_block(const struct x86_pmu *p, enum pmu_source source, unsigned r) {
  if (!p->block || !p->c->cur || r != ring(p->c)) return 0;
  return source == PMU_INSNS ? (u64)(p->c->cur - p->block) : source == PMU_BRANCHES ? branches(p->block, p->c->cur) : 0;
}

static u64 total(const struct x86_pmu *p, enum pmu_source source, unsigned rings) {
  u64 t = 0;
  for (unsigned r = 0; r < 2; r++)
    if (rings >> r & 1) t += p->total[source][r] + within_block(p, source, r);
  if (source == PMU_CYCLES && p->entered && (rings >> (p->by_ring ? ring(p->c) : 0) & 1)) t += tsc(p) - p->entered;
  return t;
}

void x86_pmu_block_begin(struct x86_vcpu *c, const struct x86_block *b) {
  c->pmu->block = b->insn;
}

static void retired(struct x86_pmu *p, unsigned r, u64 n) {
  p->block = NULL;
  p->total[PMU_INSNS][r] += n;
  if (p->by_ring) add_cycles(p, r);
  pmu_check_overflow(p);
}

void x86_pmu_block_end(struct x86_vcpu *c, const struct x86_block *b, unsigned r, const struct x86_insn *last, bool done,
                       bool jumped) {
  unsigned n = (unsigned)(last - b->insn);
  c->pmu->total[PMU_BRANCHES][r] += branches(b->insn, last);
  if (n < b->n && done) { /* not the mark behind the last one */
    c->pmu->total[PMU_BRANCHES][r] += jumped || conditional(last->op);
    n++;
  }
  retired(c->pmu, r, n);
}

void x86_pmu_insn_done(struct x86_vcpu *c) {
  retired(c->pmu, ring(c), 1);
}

void x86_pmu_block_abandoned(struct x86_vcpu *c) {
  struct x86_pmu *p = c->pmu;
  if (!p->block) return;
  p->total[PMU_BRANCHES][ring(c)] += within_block(p, PMU_BRANCHES, ring(c));
  retired(p, ring(c), within_block(p, PMU_INSNS, ring(c)));
}

/* ---- counters ---- */

u64 pmu_read(const struct x86_pmu *p, const struct pmu_counter *k) {
  u64 v = k->value;
  if (k->running) v += total(p, k->source, k->rings) - k->start;
  return v & mask();
}

void pmu_write(struct x86_pmu *p, struct pmu_counter *k, u64 value) {
  k->value = value & mask();
  if (!k->running) return;
  /* The instruction that writes is not counted. */
  bool inside = k->source == PMU_INSNS && p->block && k->rings >> ring(p->c) & 1;
  k->start = total(p, k->source, k->rings) + inside;
}

/* A counter that goes on as before misses nothing. */
static void run(struct x86_pmu *p, struct pmu_counter *k, enum pmu_source source, unsigned rings, bool interrupts) {
  k->interrupts = interrupts;
  if (k->running && k->source == source && k->rings == rings) return;
  k->value = pmu_read(p, k);
  k->running = source != PMU_NOTHING;
  k->source = source;
  k->rings = (u8)rings;
  pmu_write(p, k, k->value);
}

/* ---- overflow ---- */

static void check_one(struct x86_pmu *p, struct pmu_counter *k, unsigned status_bit) {
  if (!k->running) return;
  u64 now = total(p, k->source, k->rings), value = k->value + (now - k->start);
  if (value <= mask()) return;
  k->value = value & mask();
  k->start = now;
  p->global_status |= BIT(status_bit);
  if (k->interrupts) x86_lapic_local(p->c, LVT_PMC);
}

void pmu_check_overflow(struct x86_pmu *p) {
  for (unsigned n = 0; n < p->n_gp; n++) check_one(p, &p->gp[n], n);
  for (unsigned n = 0; n < p->n_fixed; n++) check_one(p, &p->fixed[n], 32 + n);
}

/* Cycles that are not looked at by block: when the first counter that interrupts overflows, if guest code runs until then. */
static void arm(struct x86_pmu *p) {
  u64 left = ~0ull;
  for (unsigned n = 0; n < p->n_gp + p->n_fixed; n++) {
    const struct pmu_counter *k = n < p->n_gp ? &p->gp[n] : &p->fixed[n - p->n_gp];
    if (k->running && k->interrupts && k->source == PMU_CYCLES) left = MIN(left, mask() + 1 - pmu_read(p, k));
  }
  bool waits = left != ~0ull && p->entered;
  if (waits)
    evtimer_arm(&p->timer, clock_now_ns() + (u64)((unsigned __int128)left * 1000000 / x86_host_tsc_khz()) + 1);
  else if (p->armed)
    evtimer_cancel(&p->timer, false);
  p->armed = waits;
}

/* ---- programming ---- */

#define SELECT_USR    BIT(16)
#define SELECT_OS     BIT(17)
#define SELECT_EDGE   BIT(18)
#define SELECT_INT    BIT(20)
#define SELECT_EN     BIT(22)
#define SELECT_INV    BIT(23)
#define SELECT_CMASK  (0xffull << 24)
#define SELECT_CMASK1 (1ull << 24)
#define FIXED_PMI     8u

/* Conditions on how many events a cycle has cannot be answered, and count nothing; a cycle has one of its own. */
static bool condition_known(u64 select, enum pmu_source source) {
  u64 c = select & (SELECT_EDGE | SELECT_INV | SELECT_CMASK);
  return !c || (source == PMU_CYCLES && c == SELECT_CMASK1);
}

static enum pmu_source gp_source(const struct x86_pmu *p, unsigned n) {
  u64 select = p->gp[n].select;
  unsigned event = pmu_event(select);
  bool enabled = select & SELECT_EN && (p->version < 2 || p->global_ctrl >> n & 1);
  if (!enabled || event >= PMU_EVENTS || !(p->events >> event & 1)) return PMU_NOTHING;
  enum pmu_source source = pmu_event_source(event);
  return condition_known(select, source) ? source : PMU_NOTHING;
}

static void program(struct x86_pmu *p, struct pmu_counter *k, enum pmu_source source, unsigned rings, bool interrupts) {
  if (!rings || !pmu_allowed(x86_vm_of(p->c), p, k)) source = PMU_NOTHING;
  run(p, k, source, rings, interrupts);
  if (!k->running) return;
  bool cycles = source == PMU_CYCLES, by_ring = cycles && rings != (PMU_OS | PMU_USR);
  p->c->counts_cycles |= cycles;
  p->c->counting |= !cycles || by_ring;
  p->wants_rings |= by_ring;
}

void pmu_program(struct x86_pmu *p) {
  struct x86_vcpu *c = p->c;
  p->frozen = x86_host_tsc();
  add_cycles(p, p->by_ring ? ring(c) : 0);
  if (atomic_load_explicit(&c->core.mode, memory_order_relaxed) == VCPU_RUNNING && !p->entered) p->entered = p->frozen;
  c->counting = c->counts_cycles = p->wants_rings = false;
  for (unsigned n = 0; n < PMU_GP_MAX; n++) {
    u64 select = p->gp[n].select;
    unsigned rings = (select & SELECT_OS ? PMU_OS : 0) | (select & SELECT_USR ? PMU_USR : 0);
    program(p, &p->gp[n], n < p->n_gp ? gp_source(p, n) : PMU_NOTHING, rings, select & SELECT_INT);
  }
  for (unsigned n = 0; n < PMU_FIXED_MAX; n++) {
    unsigned bits = p->fixed_ctrl >> (4 * n) & 0xf;
    bool enabled = n < p->n_fixed && p->global_ctrl >> (32 + n) & 1;
    program(p, &p->fixed[n], enabled ? PMU_FIXED_SOURCE(n) : PMU_NOTHING, bits & 3, bits & FIXED_PMI);
  }
  p->by_ring = p->wants_rings;
  p->frozen = 0;
  if (!c->counts_cycles) p->entered = 0;
  arm(p);
}

/* ---- entering and leaving guest code ---- */

void x86_pmu_enter(struct x86_vcpu *c) {
  c->pmu->entered = x86_host_tsc();
  arm(c->pmu);
}

void x86_pmu_leave(struct x86_vcpu *c) {
  add_cycles(c->pmu, c->pmu->by_ring ? ring(c) : 0);
  c->pmu->entered = 0;
  arm(c->pmu);
}
