/* The PMU's MSRs (SDM Vol. 3B 20.2, Vol. 4). */
#include "x86/msr/msr.h"
#include "x86/pmu/pmu.h"

#define MSR_PERFCTR0     0xc1u
#define MSR_EVNTSEL0     0x186u
#define MSR_FIXED_CTR0   0x309u
#define MSR_FIXED_CTRL   0x38du
#define MSR_STATUS       0x38eu
#define MSR_GLOBAL_CTRL  0x38fu
#define MSR_OVF_CTRL     0x390u
#define MSR_PMC0         0x4c1u
#define FW_WRITES        X86_PERF_CAPS /* the second address of a counter */
#define SELECT_RESERVED  0xffffffff00200000ull
#define OVF_BUFFER_COND  (3ull << 62)

static bool within(u32 index, u32 first, unsigned n) { return index >= first && index - first < n; }

static struct pmu_counter *counter(struct x86_pmu *p, u32 index) {
  if (within(index, MSR_PERFCTR0, p->n_gp)) return &p->gp[index - MSR_PERFCTR0];
  if (within(index, MSR_PMC0, p->n_gp) && (p->c->msr->perf_caps & FW_WRITES)) return &p->gp[index - MSR_PMC0];
  if (within(index, MSR_FIXED_CTR0, p->n_fixed)) return &p->fixed[index - MSR_FIXED_CTR0];
  return NULL;
}

static u64 *control(struct x86_pmu *p, u32 index) {
  if (p->version < 2) return NULL;
  return index == MSR_FIXED_CTRL ? &p->fixed_ctrl : index == MSR_STATUS ? &p->global_status : index == MSR_GLOBAL_CTRL ? &p->global_ctrl : NULL;
}

/* The first two counters of the P6 family: without a PMU they read as zero and take any value, as in KVM.  User space may also
 * read the others as zero, and write that: they are in the list of what is to be saved. */
static int absent(u32 index, bool host, bool zero) {
  bool p6 = within(index, MSR_PERFCTR0, 2) || within(index, MSR_EVNTSEL0, 2);
  return p6 || (host && zero) ? MSR_OK : MSR_UNKNOWN;
}

int x86_pmu_get(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 *value) {
  struct x86_pmu *p = c->pmu;
  const struct pmu_counter *k = counter(p, index);
  const u64 *r = control(p, index);
  *value = 0;
  if (k) {
    pmu_check_overflow(p); /* so that the status read next agrees */
    *value = pmu_read(p, k);
  } else if (within(index, MSR_EVNTSEL0, p->n_gp)) {
    *value = p->gp[index - MSR_EVNTSEL0].select;
  } else if (r) {
    pmu_check_overflow(p);
    *value = *r;
  } else if (!(index == MSR_OVF_CTRL && p->version >= 2)) {
    return absent(index, host, true);
  }
  return MSR_OK;
}

static u64 global_bits(const struct x86_pmu *p) { return (BIT(p->n_gp) - 1) | (BIT(p->n_fixed) - 1) << 32; }

static u64 fixed_bits(const struct x86_pmu *p) {
  u64 bits = 0;
  for (unsigned n = 0; n < p->n_fixed; n++) bits |= 0xbull << (4 * n); /* no "any thread" */
  return bits;
}

static int set_counter(struct x86_pmu *p, struct pmu_counter *k, u32 index, bool host, u64 value) {
  bool gp = within(index, MSR_PERFCTR0, p->n_gp), wide = within(index, MSR_PMC0, p->n_gp);
  if (wide && value >> PMU_WIDTH) return MSR_INVAL;
  if (gp && !host) value = (u64)(s64)(s32)value; /* SDM Vol. 3B 20.2.5: 32 bits, sign-extended */
  pmu_write(p, k, value);
  return MSR_OK;
}

static int set_select(struct x86_pmu *p, struct pmu_counter *k, u64 value) {
  if (value & SELECT_RESERVED) return MSR_INVAL;
  k->select = value;
  return MSR_OK;
}

static int set_control(struct x86_pmu *p, u32 index, bool host, u64 value) {
  if (index == MSR_STATUS && !host) return MSR_INVAL;
  if (index == MSR_FIXED_CTRL && value & ~fixed_bits(p)) return MSR_INVAL;
  if (index == MSR_GLOBAL_CTRL && value & ~global_bits(p)) return MSR_INVAL;
  *control(p, index) = value;
  return MSR_OK;
}

static int clear_status(struct x86_pmu *p, bool host, u64 value) {
  if (value & ~(global_bits(p) | OVF_BUFFER_COND)) return MSR_INVAL;
  if (!host) p->global_status &= ~value;
  return MSR_OK;
}

int x86_pmu_set(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 value) {
  struct x86_pmu *p = c->pmu;
  struct pmu_counter *k = counter(p, index);
  int r;
  pmu_check_overflow(p); /* under the old setting */
  if (k)
    r = set_counter(p, k, index, host, value);
  else if (within(index, MSR_EVNTSEL0, p->n_gp))
    r = set_select(p, &p->gp[index - MSR_EVNTSEL0], value);
  else if (control(p, index))
    r = set_control(p, index, host, value);
  else if (index == MSR_OVF_CTRL && p->version >= 2)
    return clear_status(p, host, value);
  else
    return absent(index, host, !value);
  if (!r) pmu_program(p);
  return r;
}

int x86_perf_caps_set(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 value) {
  if (!host || value & ~FW_WRITES || (value && !c->pmu->version)) return MSR_INVAL;
  c->msr->perf_caps = value;
  return MSR_OK;
}
