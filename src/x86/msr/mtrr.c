/* Memory types: MTRRs and the PAT.  They are stored and checked; the library has no caches to steer.
 *
 * Manual: Intel SDM Vol. 3A 12.11 (MTRRs), 12.12 (PAT). */
#include "x86/cpuid/cpuid.h"
#include "x86/msr/msr.h"

#define MTRR_DEF_TYPE 0x2ffu
#define MTRR_VAR0     0x200u

/* Memory types as bits: UC 0, WC 1, WT 4, WP 5, WB 6; the PAT also has UC- 7. */
static bool mtrr_type(u64 t) {
  return t < 8 && (1u << t & 0x73);
}
static bool pat_type(u64 t) {
  return t < 8 && (1u << t & 0xf3);
}

static bool each_byte(u64 v, bool (*valid)(u64 type)) {
  for (unsigned shift = 0; shift < 64; shift += 8)
    if (!valid(v >> shift & 0xff)) return false;
  return true;
}

/* Where a register's value is; NULL: no such register. */
static u64 *slot(struct x86_msr_state *m, u32 index) {
  static const u32 fixed[] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f};
  if (index == MTRR_DEF_TYPE) return &m->mtrr_def_type;
  if (index >= MTRR_VAR0 && index < MTRR_VAR0 + 2 * X86_VAR_MTRRS) return &m->mtrr_var[index - MTRR_VAR0];
  for (unsigned k = 0; k < ARRAY_SIZE(fixed); k++)
    if (fixed[k] == index) return &m->mtrr_fixed[k];
  return NULL;
}

static bool valid(const struct x86_vcpu *c, u32 index, u64 v) {
  if (index == MTRR_DEF_TYPE) return !(v & ~0xcffull) && mtrr_type(v & 0xff);
  if (index >= 0x250) return each_byte(v, mtrr_type);
  u64 reserved = c->cpuid->maxphyaddr >= 64 ? 0 : ~0ull << c->cpuid->maxphyaddr;
  if (index & 1) return !(v & (reserved | 0x7ff)); /* bit 11 makes the pair valid */
  return mtrr_type(v & 0xff) && !(v & (reserved | 0xf00));
}

int x86_mtrr_get(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 *value) {
  const u64 *s = slot(c->msr, index);
  if (!s) return MSR_INVAL;
  *value = *s;
  return MSR_OK;
}

int x86_mtrr_set(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 value) {
  u64 *s = slot(c->msr, index);
  if (!s || !valid(c, index, value)) return MSR_INVAL;
  *s = value;
  return MSR_OK;
}

int x86_pat_set(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 value) {
  if (!each_byte(value, pat_type)) return MSR_INVAL;
  c->msr->pat = value;
  return MSR_OK;
}
