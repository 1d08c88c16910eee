/* The names that gdb gets are ELF files in memory: a symbol for each translation, and where the registers of x86_code_enter()'s
 * caller are.
 *
 * gdb takes a while for each file, so that one for each of fifty thousand translations would be too many.  Each translation
 * starts with a file of its own; whenever the last MERGE files are of one size they become one, as digits carry: there are never
 * more than MERGE - 1 of a size.
 */
#include <elf.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/process.h"
#include "x86/translate/gdbjit.h"
#include "x86/translate/private.h"
#include "x86/translate/symbols.h"

enum { MERGE = 16, LEVELS = 6, FILES_MAX = LEVELS * MERGE };

/* ---- what gdb knows by name (its manual, "JIT Compilation Interface") ---- */

enum { JIT_NOACTION, JIT_REGISTER, JIT_UNREGISTER };

struct jit_code_entry {
  struct jit_code_entry *next, *prev;
  const char *symfile_addr;
  u64 symfile_size;
};

struct jit_descriptor {
  u32 version, action;
  struct jit_code_entry *relevant, *first;
};

/* Hidden as everything is: a client with a JIT compiler of its own has its own two. */
struct jit_descriptor __jit_debug_descriptor = {.version = 1};
void __jit_debug_register_code(void);
__attribute__((noinline, used)) void __jit_debug_register_code(void) {
  __asm__ volatile("" ::: "memory");
}

FORK_MUTEX(lock);

static void tell(struct jit_code_entry *e, u32 action) {
  __jit_debug_descriptor.relevant = e;
  __jit_debug_descriptor.action = action;
  __jit_debug_register_code();
}

static void enlist(struct jit_code_entry *e) {
  pthread_mutex_lock(&lock);
  e->prev = NULL;
  e->next = __jit_debug_descriptor.first;
  if (e->next) e->next->prev = e;
  __jit_debug_descriptor.first = e;
  tell(e, JIT_REGISTER);
  pthread_mutex_unlock(&lock);
}

static void delist(struct jit_code_entry *e) {
  pthread_mutex_lock(&lock);
  if (e->prev)
    e->prev->next = e->next;
  else
    __jit_debug_descriptor.first = e->next;
  if (e->next) e->next->prev = e->prev;
  tell(e, JIT_UNREGISTER);
  pthread_mutex_unlock(&lock);
}

/* ---- translations and files ---- */

struct code_name {
  const u8 *start, *end;
  u32 name; /* offset into names */
};

struct file {
  struct jit_code_entry *entry; /* and the file behind it */
  unsigned level;               /* of MERGE ^ level translations, */
  unsigned first, n;            /* these */
};

struct gdb_names {
  struct code_name *code;
  size_t n, room;
  char *names;
  size_t used, names_room;
  struct file files[FILES_MAX];
  unsigned n_files;
};

/* ---- a file ---- */

/* How to get from translated code to the caller of x86_code_enter(): below what that has pushed (RBX, RBP, R12 to R15, 8 bytes more, and the lowest frame of
 * calls, which x86_code_stray tells from the others) lie frames of 16 bytes (branch.c).  DWARF 4, 6.4 and 2.5; register numbers are those of the System V
 * ABI. */
struct unwind {
  struct __attribute__((packed)) {
    u32 length, id;
    u8 version, augmentation, code_align, data_align, return_register;
    struct __attribute__((packed)) { /* DW_CFA_def_cfa_expression */
      u8 rule, size, start[4];       /* breg7 0; again: dup, deref, */
      u8 address;                    /* addr */
      u64 lowest;
      u8 end[11];                    /* eq; bra found; plus_uconst 8; skip again; found: plus_uconst 80 */
    } cfa;
    u8 registers[17]; /* at CFA - 8 * n */
  } common;
  struct __attribute__((packed)) {
    u32 length, common;
    u64 start, size;
    u8 rules[4];
  } range;
  u32 end;
};
static const struct unwind unwind = {
    .common = {.length = sizeof(unwind.common) - 4,
               .version = 1,
               .code_align = 1,
               .data_align = 0x78, /* -8 */
               .return_register = 16,
               .cfa = {0x0f, 24, {0x77, 0, 0x12, 0x06}, 0x03, 0, {0x29, 0x28, 5, 0, 0x23, 8, 0x2f, 0xec, 0xff, 0x23, 80}},
               .registers = {0x90, 1, 0x83, 2, 0x86, 3, 0x8c, 4, 0x8d, 5, 0x8e, 6, 0x8f, 7}},
    .range = {.length = sizeof(unwind.range) - 4, .common = sizeof(unwind.common) + 4}};
_Static_assert(sizeof(unwind.common) == 56 && sizeof(unwind.range) == 28, "entries of .eh_frame are multiples of 4");

enum { S_NONE, S_TEXT, S_UNWIND, S_SYMBOLS, S_STRINGS, SECTIONS };
static const char section_names[] = "\0.text\0.eh_frame\0.symtab\0.strtab";
enum { N_TEXT = 1, N_UNWIND = 7, N_SYMBOLS = 17, N_STRINGS = 25 };

struct image {
  Elf64_Ehdr head;
  Elf64_Shdr sections[SECTIONS];
  struct unwind unwind;
  Elf64_Sym symbols[]; /* the first is none; then the strings */
};

static size_t strings_size(const struct gdb_names *g, unsigned first, unsigned n) {
  u32 end = first + n < g->n ? g->code[first + n].name : (u32)g->used;
  return sizeof(section_names) + end - g->code[first].name;
}

static void fill(struct image *m, const struct gdb_names *g, unsigned first, unsigned n) {
  const struct code_name *code = g->code + first;
  u64 start = (u64)(uintptr_t)code[0].start, size = (u64)(code[n - 1].end - code[0].start);
  u64 symbols = (n + 1) * sizeof(Elf64_Sym), strings = strings_size(g, first, n);
  m->head = (Elf64_Ehdr){.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                         .e_type = ET_EXEC,
                         .e_machine = EM_X86_64,
                         .e_version = EV_CURRENT,
                         .e_shoff = offsetof(struct image, sections),
                         .e_ehsize = sizeof(Elf64_Ehdr),
                         .e_shentsize = sizeof(Elf64_Shdr),
                         .e_shnum = SECTIONS,
                         .e_shstrndx = S_STRINGS};
  m->sections[S_TEXT] = (Elf64_Shdr){.sh_name = N_TEXT,
                                     .sh_type = SHT_NOBITS,
                                     .sh_flags = SHF_ALLOC | SHF_EXECINSTR,
                                     .sh_addr = start,
                                     .sh_size = size,
                                     .sh_addralign = 16};
  m->sections[S_UNWIND] = (Elf64_Shdr){.sh_name = N_UNWIND,
                                       .sh_type = SHT_PROGBITS,
                                       .sh_flags = SHF_ALLOC,
                                       .sh_addr = (u64)(uintptr_t)&m->unwind,
                                       .sh_offset = offsetof(struct image, unwind),
                                       .sh_size = sizeof(m->unwind),
                                       .sh_addralign = 8};
  m->sections[S_SYMBOLS] = (Elf64_Shdr){.sh_name = N_SYMBOLS,
                                        .sh_type = SHT_SYMTAB,
                                        .sh_offset = sizeof(*m),
                                        .sh_size = symbols,
                                        .sh_link = S_STRINGS,
                                        .sh_info = 1,
                                        .sh_addralign = 8,
                                        .sh_entsize = sizeof(Elf64_Sym)};
  m->sections[S_STRINGS] = (Elf64_Shdr){
      .sh_name = N_STRINGS, .sh_type = SHT_STRTAB, .sh_offset = sizeof(*m) + symbols, .sh_size = strings, .sh_addralign = 1};
  m->unwind = unwind;
  m->unwind.common.cfa.lowest = (u64)(uintptr_t)x86_code_stray;
  m->unwind.range.start = start;
  m->unwind.range.size = size;
  for (unsigned k = 0; k < n; k++)
    m->symbols[k + 1] = (Elf64_Sym){.st_name = (u32)sizeof(section_names) + code[k].name - code[0].name,
                                    .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC),
                                    .st_shndx = S_TEXT,
                                    .st_value = (u64)(uintptr_t)code[k].start,
                                    .st_size = (u64)(code[k].end - code[k].start)};
  char *text = (char *)&m->symbols[n + 1];
  memcpy(text, section_names, sizeof(section_names));
  memcpy(text + sizeof(section_names), g->names + code[0].name, strings - sizeof(section_names));
}

/* ---- the list of files ---- */

static void drop(struct gdb_names *g) {
  struct file *f = &g->files[--g->n_files];
  delist(f->entry);
  free(f->entry);
}

static void publish(struct gdb_names *g, unsigned level, unsigned first, unsigned n) {
  size_t size = sizeof(struct image) + (n + 1) * sizeof(Elf64_Sym) + strings_size(g, first, n);
  struct jit_code_entry *e = calloc(1, ALIGN_UP(sizeof(*e), (size_t)16) + size);
  if (!e) return; /* these go without names */
  struct image *m = (void *)((u8 *)e + ALIGN_UP(sizeof(*e), (size_t)16));
  fill(m, g, first, n);
  e->symfile_addr = (const char *)m;
  e->symfile_size = size;
  g->files[g->n_files++] = (struct file){.entry = e, .level = level, .first = first, .n = n};
  enlist(e);
}

/* Whether the last MERGE files are of one level, which could be a higher one. */
static bool carries(const struct gdb_names *g) {
  if (g->n_files < MERGE) return false;
  unsigned level = g->files[g->n_files - 1].level;
  return level + 1 < LEVELS && g->files[g->n_files - MERGE].level == level;
}

static void merge(struct gdb_names *g) {
  unsigned level = g->files[g->n_files - 1].level, first = g->files[g->n_files - MERGE].first;
  for (unsigned k = 0; k < MERGE; k++) drop(g);
  publish(g, level + 1, first, (unsigned)g->n - first);
}

static bool grow(void **p, size_t *room, size_t need, size_t item) {
  if (need <= *room) return true;
  void *more = reallocarray(*p, need * 2, item);
  if (!more) return false;
  *p = more;
  *room = need * 2;
  return true;
}

struct gdb_names *gdb_names_create(void) {
  return calloc(1, sizeof(struct gdb_names));
}

void gdb_names_add(struct gdb_names *g, const u8 *start, const u8 *end, const char *name) {
  size_t len = strlen(name) + 1;
  if (g->n_files == FILES_MAX) return;
  if (!grow((void **)&g->code, &g->room, g->n + 1, sizeof(*g->code)) ||
      !grow((void **)&g->names, &g->names_room, g->used + len, 1))
    return;
  g->code[g->n] = (struct code_name){.start = start, .end = end, .name = (u32)g->used};
  memcpy(g->names + g->used, name, len);
  g->used += len;
  publish(g, 0, (unsigned)g->n++, 1);
  while (carries(g)) merge(g);
}

void gdb_names_reset(struct gdb_names *g) {
  while (g->n_files) drop(g);
  g->n = g->used = 0;
}

void gdb_names_destroy(struct gdb_names *g) {
  if (!g) return;
  gdb_names_reset(g);
  free(g->code);
  free(g->names);
  free(g);
}
