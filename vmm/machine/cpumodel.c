/* CPU models: reduces the accelerator's CPUID to a model, and describes the topology (one package, one thread per core).
 *
 * Manuals: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/kvm.h>

#include "vmm/machine/cpumodel.h"

enum reg { R_EAX, R_EBX, R_ECX, R_EDX };
enum { LEVEL_MAX = 5, FEATURE_MSI_EXT_DEST_ID = 15 /* of KVM's leaf 0x40000001 EAX (Linux: virt/kvm/x86/cpuid.rst) */ };

struct cpu_feature {
  const char *name;
  uint32_t leaf, subleaf;
  uint8_t reg, bit, level;
};

static const struct cpu_feature features[] = {
#define FEATURE(name, leaf, subleaf, reg, bit, level) {name, leaf, subleaf, reg, bit, level},
#include "vmm/machine/cpufeat.def"
#undef FEATURE
};
enum { FEATURES = sizeof(features) / sizeof(features[0]) };

static const struct {
  const char *name;
  unsigned level;
} models[] = {{"x86-64-v1", 1}, {"x86-64-v2", 2}, {"x86-64-v3", 3}, {"x86-64-v4", 4}, {"max", LEVEL_MAX}};

struct cpu_vendor {
  const char *name, *id; /* id: the 12 characters of leaf 0 */
  uint32_t signature;    /* family, model, stepping where the accelerator's CPU is of another vendor */
};
static const struct cpu_vendor vendors[] = {
    {"intel", "GenuineIntel", 0x000506e3}, /* family 6, model 0x5e, stepping 3 */
    {"amd", "AuthenticAMD", 0x00800f12},   /* family 0x17, model 1, stepping 2 */
};

static int fail(char *err, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(err, CPU_ERR_LEN, fmt, ap);
  va_end(ap);
  return -1;
}

/* ---- the option ---- */

static const struct cpu_feature *find_feature(const char *name) {
  for (int i = 0; i < FEATURES; i++)
    if (strcmp(features[i].name, name) == 0) return &features[i];
  return NULL;
}

static int parse_vendor(const char *name, struct cpu_model *model, char *err) {
  for (size_t i = 0; i < sizeof(vendors) / sizeof(vendors[0]); i++)
    if (strcmp(vendors[i].name, name) == 0) {
      model->vendor = &vendors[i];
      return 0;
    }
  return fail(err, "the CPU vendor '%s' is neither intel nor amd", name);
}

static int parse_change(const char *word, struct cpu_model *model, char *err) {
  const struct cpu_feature *f = find_feature(word + 1);
  if (!f) return fail(err, "'%s' is no CPU feature that uvirt knows", word + 1);
  if (model->changes == CPU_MAX_CHANGES) return fail(err, "more than %d CPU features are changed", CPU_MAX_CHANGES);
  model->change[model->changes].feature = f;
  model->change[model->changes++].on = word[0] == '+';
  return 0;
}

static int parse_name(const char *name, struct cpu_model *model, char *err) {
  for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++)
    if (strcmp(models[i].name, name) == 0) {
      model->level = models[i].level;
      return 0;
    }
  return fail(err, "'%s' is no CPU model; there are x86-64-v1 to x86-64-v4 and max", name);
}

static int parse_word(const char *word, struct cpu_model *model, char *err) {
  if (word[0] == '+' || word[0] == '-') return parse_change(word, model, err);
  if (strncmp(word, "vendor=", 7) == 0) return parse_vendor(word + 7, model, err);
  return parse_name(word, model, err);
}

int cpu_model_parse(const char *spec, struct cpu_model *model, char err[CPU_ERR_LEN]) {
  char *copy = strdup(spec), *save, *word;
  int r = copy ? 0 : fail(err, "out of memory");
  *model = (struct cpu_model){.level = LEVEL_MAX};
  if (copy && !*copy) r = fail(err, "the CPU model is empty");
  for (word = copy ? strtok_r(copy, ",", &save) : NULL; word && r == 0; word = strtok_r(NULL, ",", &save))
    r = parse_word(word, model, err);
  free(copy);
  return r;
}

/* ---- the table ---- */

static struct kvm_cpuid_entry2 *find(struct kvm_cpuid2 *t, uint32_t leaf, uint32_t subleaf) {
  for (uint32_t i = 0; i < t->nent; i++) {
    struct kvm_cpuid_entry2 *e = &t->entries[i];
    if (e->function == leaf && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == subleaf)) return e;
  }
  return NULL;
}

static void delete_leaf(struct kvm_cpuid2 *t, uint32_t leaf) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < t->nent; i++)
    if (t->entries[i].function != leaf) t->entries[kept++] = t->entries[i];
  t->nent = kept;
}

static void append(struct kvm_cpuid2 *t, uint32_t room, struct kvm_cpuid_entry2 e) {
  if (t->nent < room) t->entries[t->nent++] = e;
}

static uint32_t *reg_of(struct kvm_cpuid_entry2 *e, unsigned reg) {
  uint32_t *regs[] = {&e->eax, &e->ebx, &e->ecx, &e->edx};
  return regs[reg];
}

static uint32_t *feature_reg(struct kvm_cpuid2 *t, const struct cpu_feature *f) {
  struct kvm_cpuid_entry2 *e = find(t, f->leaf, f->subleaf);
  return e ? reg_of(e, f->reg) : NULL;
}

/* The bits of one register that some row of at most this level allows. */
static uint32_t allowed_bits(uint32_t leaf, uint32_t subleaf, unsigned reg, unsigned level) {
  uint32_t mask = 0;
  for (int i = 0; i < FEATURES; i++) {
    const struct cpu_feature *f = &features[i];
    if (f->leaf == leaf && f->subleaf == subleaf && f->reg == reg && f->level <= level) mask |= 1u << f->bit;
  }
  return mask;
}

/* The registers that hold nothing but feature bits. */
static const struct {
  uint32_t leaf, subleaf;
  uint8_t reg;
} feature_regs[] = {{1, 0, R_EDX},          {1, 0, R_ECX},          {7, 0, R_EBX},         {7, 0, R_ECX}, {7, 0, R_EDX},
                    {7, 1, R_EAX},          {7, 1, R_EBX},          {7, 1, R_ECX},         {7, 1, R_EDX}, {0xd, 1, R_EAX},
                    {0x80000001, 0, R_ECX}, {0x80000001, 0, R_EDX}, {0x80000008, 0, R_EBX}};

static void reduce_to_level(struct kvm_cpuid2 *t, unsigned level) {
  if (level >= LEVEL_MAX) return;
  for (size_t i = 0; i < sizeof(feature_regs) / sizeof(feature_regs[0]); i++) {
    struct kvm_cpuid_entry2 *e = find(t, feature_regs[i].leaf, feature_regs[i].subleaf);
    if (!e) continue;
    uint32_t keep = allowed_bits(feature_regs[i].leaf, feature_regs[i].subleaf, feature_regs[i].reg, level);
    if (feature_regs[i].leaf == 0x80000001 && feature_regs[i].reg == R_EDX) keep |= 0x0183f3ff; /* AMD: copies of leaf 1 EDX */
    *reg_of(e, feature_regs[i].reg) &= keep;
  }
}

static int require_level(struct kvm_cpuid2 *t, const struct cpu_model *model, char *err) {
  if (model->level >= LEVEL_MAX) return 0;
  for (int i = 0; i < FEATURES; i++) {
    const struct cpu_feature *f = &features[i];
    uint32_t *reg = feature_reg(t, f);
    if (f->level == 0 || f->level > model->level || strcmp(f->name, "osxsave") == 0) continue; /* OSXSAVE mirrors CR4 */
    if (!reg || !(*reg & 1u << f->bit))
      return fail(err, "the accelerator's CPU lacks '%s', which the model x86-64-v%u needs", f->name, model->level);
  }
  return 0;
}

static int apply_changes(struct kvm_cpuid2 *t, const struct cpu_model *model, const struct kvm_cpuid2 *supported, char *err) {
  for (unsigned i = 0; i < model->changes; i++) {
    const struct cpu_feature *f = model->change[i].feature;
    uint32_t *reg = feature_reg(t, f), *have = feature_reg((struct kvm_cpuid2 *)(uintptr_t)supported, f);
    if (model->change[i].on && (!reg || !have || !(*have & 1u << f->bit)))
      return fail(err, "the accelerator's CPU lacks '%s'", f->name);
    if (!reg) continue;
    if (model->change[i].on)
      *reg |= 1u << f->bit;
    else
      *reg &= ~(1u << f->bit);
  }
  return 0;
}

static bool has(struct kvm_cpuid2 *t, const char *name) {
  const struct cpu_feature *f = find_feature(name);
  uint32_t *reg = feature_reg(t, f);
  return reg && *reg & 1u << f->bit;
}

/* Leaf 0xd follows from the features: components of XCR0 and the size of the area that holds them (SDM vol. 1, 13.2). */
static void fix_xsave(struct kvm_cpuid2 *t) {
  static const struct {
    const char *feature;
    uint32_t components;
  } parts[] = {{"avx", 1 << 2}, {"avx512f", 7 << 5}, {"pku", 1 << 9}};
  struct kvm_cpuid_entry2 *d = find(t, 0xd, 0);
  if (!d) return;
  if (!has(t, "xsave")) {
    delete_leaf(t, 0xd);
    return;
  }
  uint32_t keep = ~(uint32_t)(3 << 3); /* MPX: no CPU has it any more */
  for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
    if (!has(t, parts[i].feature)) keep &= ~parts[i].components;
  d->eax &= keep;
  uint32_t size = 576; /* legacy area and header */
  for (uint32_t i = 2; i < 32; i++) {
    struct kvm_cpuid_entry2 *c = find(t, 0xd, i);
    if (!c) continue;
    bool supervisor = c->ecx & 1;
    if (!supervisor && !(d->eax & 1u << i))
      *c = (struct kvm_cpuid_entry2){.function = 0xd, .index = i, .flags = c->flags};
    else if (!supervisor && c->ebx + c->eax > size)
      size = c->ebx + c->eax;
  }
  d->ecx = size;
}

/* Features that rest on one that was taken away go with it.  What a rule needs stands in the rules above it, so one pass does. */
static void drop_dependents(struct kvm_cpuid2 *t) {
  static const struct {
    const char *needs, *feature;
  } rules[] = {{"sse2", "aes"},
               {"sse2", "pclmulqdq"},
               {"sse2", "sha"},
               {"sse2", "gfni"},
               {"xsave", "osxsave"},
               {"xsave", "xsaveopt"},
               {"xsave", "xsavec"},
               {"xsave", "xgetbv1"},
               {"xsavec", "xsaves"},
               {"xsave", "pku"},
               {"xsave", "avx"},
               {"avx", "fma"},
               {"avx", "f16c"},
               {"avx", "avx2"},
               {"avx", "vaes"},
               {"aes", "vaes"},
               {"avx", "vpclmulqdq"},
               {"pclmulqdq", "vpclmulqdq"},
               {"avx2", "avx-vnni"},
               {"avx2", "avx512f"},
               {"avx512f", "avx512dq"},
               {"avx512f", "avx512cd"},
               {"avx512f", "avx512bw"},
               {"avx512f", "avx512vl"},
               {"avx512f", "avx512ifma"},
               {"avx512f", "avx512vbmi"},
               {"avx512f", "avx512vpopcntdq"},
               {"avx512vl", "avx512vbmi2"},
               {"avx512vl", "avx512vnni"},
               {"avx512vl", "avx512bitalg"},
               {"avx512vl", "avx512bf16"},
               {"avx512bw", "avx512fp16"}};
  for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
    const struct cpu_feature *f = find_feature(rules[i].feature);
    uint32_t *reg = feature_reg(t, f);
    if (reg && !has(t, rules[i].needs)) *reg &= ~(1u << f->bit);
  }
}

/* ---- vendor and name ---- */

static bool is_vendor(struct kvm_cpuid2 *t, const char *id) {
  struct kvm_cpuid_entry2 *e = find(t, 0, 0);
  return e && memcmp(&e->ebx, id, 4) == 0 && memcmp(&e->edx, id + 4, 4) == 0 && memcmp(&e->ecx, id + 8, 4) == 0;
}

static void set_vendor(struct kvm_cpuid2 *t, const struct cpu_vendor *v) {
  struct kvm_cpuid_entry2 *leaf0 = find(t, 0, 0), *ext0 = find(t, 0x80000000, 0), *leaf1 = find(t, 1, 0),
                          *ext1 = find(t, 0x80000001, 0);
  if (!v || is_vendor(t, v->id) || !leaf0 || !leaf1) return;
  struct kvm_cpuid_entry2 *const both[] = {leaf0, ext0};
  for (int i = 0; i < 2; i++) {
    if (!both[i]) continue;
    memcpy(&both[i]->ebx, v->id, 4);
    memcpy(&both[i]->edx, v->id + 4, 4);
    memcpy(&both[i]->ecx, v->id + 8, 4);
  }
  leaf1->eax = v->signature;
  bool amd = strcmp(v->name, "amd") == 0;
  if (ext1) ext1->eax = amd ? v->signature : 0;
  if (ext1) ext1->edx = (ext1->edx & ~0x0183f3ffu) | (amd ? leaf1->edx & 0x0183f3ff : 0); /* AMD repeats leaf 1 EDX */
  if (amd && ext0 && ext0->eax < 0x80000021) ext0->eax = 0x80000021;
}

static void set_brand(struct kvm_cpuid2 *t, uint32_t room, const struct cpu_model *model) {
  char brand[48] = {0};
  if (model->level >= LEVEL_MAX && !model->vendor) return;
  snprintf(brand, sizeof(brand), "uvirt virtual CPU (%s)", models[model->level - 1].name);
  for (uint32_t i = 0; i < 3; i++) {
    struct kvm_cpuid_entry2 e = {.function = 0x80000002 + i};
    delete_leaf(t, e.function);
    memcpy(&e.eax, brand + i * 16, 4);
    memcpy(&e.ebx, brand + i * 16 + 4, 4);
    memcpy(&e.ecx, brand + i * 16 + 8, 4);
    memcpy(&e.edx, brand + i * 16 + 12, 4);
    append(t, room, e);
  }
}

/* ---- topology ---- */

static unsigned bits_for(unsigned count) {
  unsigned bits = 0;
  while (1u << bits < count) bits++;
  return bits;
}

/* Leaf 0xb and its successor 0x1f: level 0 is the thread, level 1 the core. */
static void set_extended_topology(struct kvm_cpuid2 *t, uint32_t room, uint32_t leaf, unsigned cpus) {
  delete_leaf(t, leaf);
  const struct kvm_cpuid_entry2 levels[] = {
      {.function = leaf, .index = 0, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .eax = 0, .ebx = 1, .ecx = 0 | 1 << 8},
      {.function = leaf,
       .index = 1,
       .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
       .eax = bits_for(cpus),
       .ebx = cpus,
       .ecx = 1 | 2 << 8},
      {.function = leaf, .index = 2, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .ecx = 2},
  };
  for (int i = 0; i < 3; i++) append(t, room, levels[i]);
}

/* Caches of leaf 4 (Intel) and 0x8000001d (AMD), same layout: levels 1 and 2 are a core's own, level 3 is shared by all. */
static void share_caches(struct kvm_cpuid2 *t, uint32_t leaf, unsigned cpus) {
  uint32_t others = (1u << bits_for(cpus)) - 1;
  for (uint32_t i = 0; i < 8; i++) {
    struct kvm_cpuid_entry2 *e = find(t, leaf, i);
    if (!e || !(e->eax & 0x1f)) continue;
    bool shared = (e->eax >> 5 & 7) >= 3;
    e->eax = (e->eax & 0x3fff) | (shared ? others & 0xfff : 0) << 14;
    if (leaf == 4) e->eax |= (others & 0x3f) << 26; /* cores in the package */
  }
}

static void set_topology(struct kvm_cpuid2 *t, uint32_t room, unsigned cpus) {
  struct kvm_cpuid_entry2 *leaf0 = find(t, 0, 0), *leaf1 = find(t, 1, 0);
  bool amd = is_vendor(t, "AuthenticAMD");
  if (leaf1) {
    leaf1->ebx = (leaf1->ebx & 0xff00) | (cpus < 255 ? cpus : 255) << 16;
    leaf1->edx = (leaf1->edx & ~(1u << 28)) | (cpus > 1 ? 1u << 28 : 0);
  }
  if (leaf0 && leaf0->eax < 0xb) leaf0->eax = 0xb;
  bool has_1f = leaf0 && leaf0->eax >= 0x1f;
  set_extended_topology(t, room, 0xb, cpus); /* entries move: no pointer into the table lives on */
  if (has_1f) set_extended_topology(t, room, 0x1f, cpus);
  share_caches(t, amd ? 0x8000001d : 4, cpus);
  if (!amd) return;
  struct kvm_cpuid_entry2 *ext1 = find(t, 0x80000001, 0), *ext8 = find(t, 0x80000008, 0);
  if (ext1) ext1->ecx = (ext1->ecx & ~2u) | (cpus > 1 ? 2 : 0); /* CmpLegacy */
  if (ext8) ext8->ecx = (ext8->ecx & ~0xf0ffu) | ((cpus - 1) & 0xff) | bits_for(cpus) << 12;
  delete_leaf(t, 0x8000001e);
  append(t, room, (struct kvm_cpuid_entry2){.function = 0x8000001e});
}

void cpu_model_number(struct kvm_cpuid2 *t, uint32_t apic_id) {
  static const uint32_t extended[] = {0xb, 0x1f};
  struct kvm_cpuid_entry2 *leaf1 = find(t, 1, 0), *amd = find(t, 0x8000001e, 0);
  if (leaf1) leaf1->ebx = (leaf1->ebx & 0x00ffffff) | apic_id << 24;
  for (int i = 0; i < 2; i++)
    for (uint32_t level = 0; level < 3; level++) {
      struct kvm_cpuid_entry2 *e = find(t, extended[i], level);
      if (e) e->edx = apic_id;
    }
  if (amd)
    *amd =
        (struct kvm_cpuid_entry2){.function = 0x8000001e, .eax = apic_id, .ebx = apic_id & 0xff}; /* core id, 1 thread, node 0 */
}

unsigned cpu_model_phys_bits(const struct kvm_cpuid2 *table) {
  struct kvm_cpuid_entry2 *e = find((struct kvm_cpuid2 *)(uintptr_t)table, 0x80000008, 0);
  return e && (e->eax & 0xff) ? e->eax & 0xff : 36;
}

/* ---- all of it ---- */

int cpu_model_apply(const struct cpu_model *model, struct kvm_cpuid2 *t, uint32_t room, unsigned cpus, bool tsc_deadline,
                    char err[CPU_ERR_LEN]) {
  struct kvm_cpuid_entry2 *leaf1 = find(t, 1, 0), *kvm = find(t, 0x40000001, 0);
  size_t size = sizeof(*t) + t->nent * sizeof(t->entries[0]);
  if (!leaf1) return fail(err, "the accelerator's CPU description is incomplete");
  leaf1->ecx |= 1u << 31;                   /* a hypervisor is present */
  if (tsc_deadline) leaf1->ecx |= 1u << 24; /* not reported as supported but by KVM_CAP_TSC_DEADLINE_TIMER (api.rst) */
  if (kvm && cpus > 255) kvm->eax |= 1u << FEATURE_MSI_EXT_DEST_ID;
  struct kvm_cpuid2 *supported = malloc(size);
  if (!supported) return fail(err, "out of memory");
  memcpy(supported, t, size);
  int r = require_level(t, model, err);
  reduce_to_level(t, model->level);
  if (r == 0) r = apply_changes(t, model, supported, err);
  free(supported);
  if (r) return r;
  drop_dependents(t);
  fix_xsave(t);
  set_vendor(t, model->vendor);
  set_brand(t, room, model);
  set_topology(t, room, cpus);
  return 0;
}
