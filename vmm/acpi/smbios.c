/* A minimal SMBIOS 3 table: who made the machine (DSP0134 3.4). */
#include <string.h>

#include "uvirt.h"
#include "vmm/acpi/tables.h"

/* 5.2.2, 64-bit entry point */
struct smbios3_entry {
  char anchor[5];
  uint8_t checksum, length, major, minor, docrev, revision, reserved;
  uint32_t max_size;
  uint64_t table;
} __attribute__((packed));

struct smbios_writer {
  uint8_t *at, *end;
  uint16_t handle;
  bool overflow;
};

/* A structure: type, length, handle, its formatted body, its strings, each ended by 0, and one more 0 (6.1.3). */
static void put(struct smbios_writer *w, uint8_t type, const void *body, size_t body_len, const char *const *strings) {
  size_t need = 4 + body_len + 2;
  for (int i = 0; strings[i]; i++) need += strlen(strings[i]) + 1;
  if ((size_t)(w->end - w->at) < need) {
    w->overflow = true;
    return;
  }
  uint8_t head[4] = {type, (uint8_t)(4 + body_len), (uint8_t)w->handle, (uint8_t)(w->handle >> 8)};
  w->handle++;
  memcpy(w->at, head, 4);
  if (body_len) memcpy(w->at + 4, body, body_len);
  w->at += 4 + body_len;
  for (int i = 0; strings[i]; i++) {
    memcpy(w->at, strings[i], strlen(strings[i]) + 1);
    w->at += strlen(strings[i]) + 1;
  }
  if (!strings[0]) *w->at++ = 0;
  *w->at++ = 0;
}

int smbios_build(const struct firmware_config *config, uint8_t *area, uint64_t gpa, size_t len) {
  static const char *const none[] = {NULL};
  char version[16];
  struct smbios3_entry *e = (struct smbios3_entry *)area;
  struct smbios_writer w = {area + 32, area + len, 0, false};
  strncpy(version, uvirt_version(), sizeof(version) - 1);
  version[sizeof(version) - 1] = 0;
  /* 7.1, BIOS: vendor, version, no address, date, no ROM; characteristics "not supported"; extension: it is a virtual machine. */
  const uint8_t bios[] = {1, 2, 0, 0, 3, 0, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0xff, 0xff};
  put(&w, 0, bios, sizeof(bios), (const char *const[]){"uvirt", version, "01/01/2024", NULL});
  /* 7.2, system: manufacturer, product, version, no serial, UUID 0 (not present), wake-up by power switch. */
  uint8_t system[23] = {1, 2, 3, 0};
  system[20] = 6;
  put(&w, 1, system, sizeof(system), (const char *const[]){"uvirt", "uvirt virtual machine", version, NULL});
  /* 7.4, enclosure: manufacturer, type "other". */
  const uint8_t chassis[] = {1, 1, 0, 0, 0, 3, 3, 3, 2};
  put(&w, 3, chassis, sizeof(chassis), (const char *const[]){"uvirt", NULL});
  put(&w, 127, NULL, 0, none);
  if (w.overflow) return -1;
  *e = (struct smbios3_entry){
      .length = sizeof(*e), .major = 3, .minor = 4, .revision = 1, .max_size = (uint32_t)(w.at - (area + 32)), .table = gpa + 32};
  memcpy(e->anchor, "_SM3_", 5);
  e->checksum = table_checksum(e, sizeof(*e));
  return 0;
}
