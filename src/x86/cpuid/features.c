/* Feature bits by name: what the engine runs, and the numbers of feature configurations. */
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include "base/process.h"
#include "x86/cpuid/cpuid.h"
#include "x86/pv/pv.h"

const struct x86_feature_row x86_feature_rows[X86_FEATURE_COUNT] = {
#define FEATURE_ROW(name, leaf, sub, reg, bit) {#name, leaf, sub, CPUID_##reg, bit},
    X86_FEATURES(FEATURE_ROW)
#undef FEATURE_ROW
};

/* Who decides whether a feature works. */
enum origin {
  NEVER,  /* not implemented */
  ENGINE, /* implemented in C, on every host */
  NATIVE, /* runs on the host CPU: the native executor knows */
  HOST,   /* works where the host has it: inline assembly in the executor, or a property that the guest inherits */
  INTEL,  /* implemented, but only Intel processors have it */
  VENDOR, /* implemented, but only AMD processors have it */
};

#define IS(origin, name) [X86_FEATURE_##name] = origin
/* clang-format off */
static const u8 origins[X86_FEATURE_COUNT] = {
    IS(ENGINE, FPU), IS(ENGINE, VME), IS(ENGINE, DE), IS(ENGINE, PSE), IS(ENGINE, TSC), IS(ENGINE, MSR), IS(ENGINE, PAE),
    IS(ENGINE, MCE), IS(ENGINE, CX8), IS(ENGINE, APIC), IS(ENGINE, SEP), IS(ENGINE, MTRR), IS(ENGINE, PGE), IS(ENGINE, MCA),
    IS(ENGINE, CMOV), IS(ENGINE, PAT), IS(ENGINE, PSE36), IS(ENGINE, CLFLUSH), IS(NATIVE, MMX), IS(NATIVE, FXSR), IS(NATIVE, SSE),
    IS(NATIVE, SSE2), IS(ENGINE, SS),
    IS(NATIVE, SSE3), IS(NATIVE, PCLMULQDQ), IS(NATIVE, SSSE3), IS(NATIVE, FMA), IS(HOST, CX16), IS(INTEL, PDCM), IS(ENGINE, PCID), IS(NATIVE, SSE41),
    IS(NATIVE, SSE42), IS(ENGINE, X2APIC), IS(ENGINE, MOVBE), IS(HOST, POPCNT), IS(NATIVE, AES), IS(NATIVE, XSAVE), IS(NATIVE, AVX),
    IS(NATIVE, F16C), IS(ENGINE, RDRAND), IS(ENGINE, HYPERVISOR),
    IS(ENGINE, ARAT),
    IS(ENGINE, FSGSBASE), IS(ENGINE, TSC_ADJUST), IS(HOST, BMI1), IS(NATIVE, AVX2), IS(ENGINE, SMEP), IS(HOST, BMI2), IS(ENGINE, ERMS),
    IS(ENGINE, INVPCID), IS(NATIVE, AVX512F), IS(NATIVE, AVX512DQ), IS(ENGINE, RDSEED), IS(HOST, ADX), IS(ENGINE, SMAP),
    IS(NATIVE, AVX512_IFMA), IS(ENGINE, CLFLUSHOPT), IS(ENGINE, CLWB), IS(NATIVE, AVX512CD), IS(NATIVE, SHA_NI), IS(NATIVE, AVX512BW),
    IS(NATIVE, AVX512VL),
    IS(NATIVE, AVX512_VBMI), IS(ENGINE, UMIP), IS(ENGINE, PKU), IS(NATIVE, AVX512_VBMI2), IS(NATIVE, GFNI), IS(NATIVE, VAES),
    IS(NATIVE, VPCLMULQDQ), IS(NATIVE, AVX512_VNNI), IS(NATIVE, AVX512_BITALG), IS(NATIVE, AVX512_VPOPCNTDQ), IS(ENGINE, LA57),
    IS(ENGINE, RDPID), IS(HOST, MOVDIRI), IS(HOST, MOVDIR64B),
    IS(ENGINE, FSRM), IS(ENGINE, SERIALIZE), IS(NATIVE, AVX512_FP16), IS(NATIVE, AVX_VNNI), IS(NATIVE, AVX512_BF16),
    IS(NATIVE, XSAVEOPT), IS(NATIVE, XSAVEC), IS(NATIVE, XGETBV1), IS(NATIVE, XSAVES),
    IS(ENGINE, SYSCALL), IS(ENGINE, NX), IS(NATIVE, MMXEXT), IS(ENGINE, GBPAGES), IS(ENGINE, RDTSCP), IS(ENGINE, LM),
    IS(ENGINE, LAHF_LM), IS(VENDOR, CR8_LEGACY), IS(HOST, ABM), IS(NATIVE, SSE4A), IS(ENGINE, PREFETCHW), IS(NATIVE, XOP),
    IS(NATIVE, FMA4), IS(NATIVE, TBM), IS(HOST, INVTSC), IS(VENDOR, CLZERO),
    IS(ENGINE, KVM_CLOCK), IS(ENGINE, KVM_NOP_IO_DELAY), IS(ENGINE, KVM_CLOCK2), IS(ENGINE, KVM_STEAL_TIME), IS(ENGINE, KVM_PV_EOI),
    IS(ENGINE, KVM_PV_UNHALT), IS(ENGINE, KVM_PV_TLB_FLUSH), IS(ENGINE, KVM_PV_SEND_IPI), IS(ENGINE, KVM_POLL_CONTROL),
    IS(ENGINE, KVM_PV_SCHED_YIELD), IS(ENGINE, KVM_CLOCK_STABLE),
};
/* clang-format on */
#undef IS

bool x86_host_has(enum x86_feature f) {
  const struct x86_feature_row *row = &x86_feature_rows[f];
  u32 r[4] = {0};
  if (!__get_cpuid_count(row->leaf, row->subleaf, &r[0], &r[1], &r[2], &r[3])) return false;
  return r[row->reg] >> row->bit & 1;
}

static bool host_is_amd(void) {
  u32 a, b, c, d;
  __cpuid(0, a, b, c, d);
  return b == 0x68747541 || b == 0x6f677948; /* "Auth", "Hygo" */
}

static bool host_is_intel(void) {
  u32 a, b, c, d;
  __cpuid(0, a, b, c, d);
  return b == 0x756e6547; /* "Genu" */
}

/* Protection keys need their register in the XSAVE area (SDM Vol. 1 13.1), steal time the host's word; everything else decides for itself. */
static bool works(enum x86_feature f) {
  if (f == X86_FEATURE_KVM_STEAL_TIME && !x86_pv_steal_known()) return false;
  if (f == X86_FEATURE_PKU && !(x86_xcr0_supported() & BIT(9))) return false;
  switch (origins[f]) {
  case ENGINE:
    return true;
  case NATIVE:
    return x86_native_supports(f);
  case HOST:
    return x86_host_has(f);
  case INTEL:
    return host_is_intel();
  case VENDOR:
    return host_is_amd();
  default:
    return false;
  }
}

static u64 engine_features[X86_CPUID_FEATURE_WORDS];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find_features(void) {
  for (unsigned f = 0; f < X86_FEATURE_COUNT; f++)
    if (works((enum x86_feature)f)) engine_features[f / 64] |= BIT(f % 64);
}

bool x86_engine_has(enum x86_feature f) {
  pthread_once(&once, find_features);
  return engine_features[f / 64] >> (f % 64) & 1;
}

u32 x86_engine_word(u32 leaf, u32 subleaf, unsigned reg) {
  u32 word = 0;
  for (unsigned f = 0; f < X86_FEATURE_COUNT; f++) {
    const struct x86_feature_row *row = &x86_feature_rows[f];
    if (row->leaf == leaf && row->subleaf == subleaf && row->reg == reg && x86_engine_has((enum x86_feature)f))
      word |= 1u << row->bit;
  }
  return word;
}

bool x86_cpuid_has(const struct x86_cpuid *id, enum x86_feature f) {
  return id->features[f / 64] >> (f % 64) & 1;
}
bool x86_has(const struct x86_vcpu *c, enum x86_feature f) {
  return x86_cpuid_has(c->cpuid, f);
}
bool x86_is_amd(const struct x86_vcpu *c) {
  return c->cpuid->amd;
}

bool x86_pv_has(const struct x86_vcpu *c, enum x86_feature f) {
  return !c->cpuid->pv_enforce || (c->cpuid->pv_features >> x86_feature_rows[f].bit & 1);
}

/* Bits that follow run-time state do not make another configuration: what depends on them looks at the state itself. */
static const u8 runtime_features[] = {X86_FEATURE_OSXSAVE, X86_FEATURE_OSPKE, X86_FEATURE_APIC, X86_FEATURE_MONITOR};

/* Guards config and isa of all vCPUs.  Innermost. */
FORK_MUTEX(isa_lock);

/* The number of another vCPU of the VM with this configuration, else one that no vCPU uses.  A vCPU that has run cannot change
 * its number, so blocks of one configuration never meet another under the same number. */
static int isa_choose(struct x86_vcpu *c, const u64 *config) {
  u64 used[4] = {0};
  unsigned n = atomic_load_explicit(&c->core.vm->n_vcpus, memory_order_acquire);
  for (unsigned k = 0; k < n; k++) {
    const struct x86_vcpu *o = x86_vcpu(c->core.vm->vcpus[k]);
    if (o == c || !o->cpuid) continue;
    if (!memcmp(o->cpuid->config, config, sizeof(o->cpuid->config))) return o->isa;
    used[o->isa / 64] |= BIT(o->isa % 64);
  }
  for (unsigned isa = 0; isa < 256; isa++)
    if (!(used[isa / 64] >> (isa % 64) & 1)) return (int)isa;
  return -ENOMEM;
}

int x86_isa_assign(struct x86_vcpu *c, const u64 features[X86_CPUID_FEATURE_WORDS]) {
  u64 config[X86_CPUID_CONFIG_WORDS];
  memcpy(config, features, X86_CPUID_FEATURE_WORDS * sizeof(*config));
  for (unsigned k = 0; k < ARRAY_SIZE(runtime_features); k++) config[runtime_features[k] / 64] &= ~BIT(runtime_features[k] % 64);
  bool bus_lock_exits = x86_vm_of(c)->bus_lock_exits;
  config[X86_CPUID_FEATURE_WORDS] = bus_lock_exits;
  pthread_mutex_lock(&isa_lock);
  int isa = isa_choose(c, config);
  if (isa >= 0) {
    memcpy(c->cpuid->config, config, sizeof(config));
    c->isa = (u8)isa;
    c->bus_lock_exits = bus_lock_exits;
  }
  pthread_mutex_unlock(&isa_lock);
  return isa < 0 ? isa : 0;
}
