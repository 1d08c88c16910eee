/* Brings the kernel, its initrd and the firmware tables from the host's files into guest memory. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/acpi/tables.h"
#include "vmm/boot/layout.h"
#include "vmm/machine/machine_priv.h"
#include "vmm/pci/pci.h"

enum { FILE_MAX = 1 << 30 };

static void drop_contents(struct kernel_file *f) {
  free(f->data);
  f->data = NULL;
}

/* Opens a file, or goes back to its start. */
static int rewind_file(struct kernel_file *f, const char *path) {
  struct stat st;
  if (f->open) return lseek(f->fd, 0, SEEK_SET) < 0 ? -1 : 0;
  f->fd = open(path, O_RDONLY | O_CLOEXEC);
  f->open = f->fd >= 0;
  f->keep = !f->open || fstat(f->fd, &st) || !S_ISREG(st.st_mode);
  return f->open ? 0 : -1;
}

/* Reads a whole file (a pipe too), unless its contents are there. */
static int read_file(struct kernel_file *f, const char *path, const char *what, size_t limit, char *err) {
  struct stat st;
  size_t room = 1 << 20, n = 0;
  if (f->data) return 0;
  if (rewind_file(f, path)) return machine_fail(err, "the %s '%s' cannot be opened: %s", what, path, strerror(errno));
  if (!f->keep && fstat(f->fd, &st) == 0) room = (size_t)st.st_size + 1;
  uint8_t *buf = NULL;
  ssize_t got = 1;
  while (got > 0 && n <= limit) {
    uint8_t *more = room <= limit + 1 ? realloc(buf, room) : NULL;
    if (!more) break;
    buf = more;
    while (n < room && (got = read(f->fd, buf + n, room - n)) > 0) n += (size_t)got;
    if (got > 0) room *= 2;
  }
  f->data = buf;
  f->len = n;
  if (got == 0) return 0;
  int error = got < 0 ? errno : 0;
  drop_contents(f);
  if (error) return machine_fail(err, "the %s '%s' cannot be read: %s", what, path, strerror(error));
  return machine_fail(err, "the %s '%s' is too large", what, path);
}

/* Reads the files and unpacks the kernel, as far as that is not there. */
static int read_files(struct vmm *vmm, char *err) {
  char why[BOOT_ERR_LEN];
  const struct machine_config *c = vmm->config;
  if (!vmm->image) {
    if (read_file(&vmm->kernel, c->kernel, "kernel", FILE_MAX, err)) return -1;
    vmm->image = boot_image_open(vmm->kernel.data, vmm->kernel.len, why);
    drop_contents(&vmm->kernel);
    if (!vmm->image) return machine_fail(err, "'%s' cannot be booted: %s", c->kernel, why);
  }
  size_t limit = c->memory < SIZE_MAX - 1 ? c->memory : SIZE_MAX - 1;
  if (c->initrd && read_file(&vmm->initrd, c->initrd, "initrd", limit, err)) {
    struct stat st;
    if (stat(c->initrd, &st) == 0 && (uint64_t)st.st_size > limit)
      return machine_fail(err, "the initrd of %.1f MiB is larger than the machine's memory of %.1f MiB",
                          (double)st.st_size / (1 << 20), (double)c->memory / (1 << 20));
    return -1;
  }
  if (c->initrd && vmm->initrd.len == 0) return machine_fail(err, "the initrd '%s' is empty", c->initrd);
  return 0;
}

/* While the machine runs nobody needs the files; a reset reads them again. */
static void give_back(struct vmm *vmm) {
  if (!vmm->kernel.keep) {
    boot_image_free(vmm->image);
    vmm->image = NULL;
  }
  if (!vmm->initrd.keep) drop_contents(&vmm->initrd);
}

int kernel_open(struct vmm *vmm, char *err) {
  if (read_files(vmm, err)) return -1;
  snprintf(vmm->kernel_text, sizeof(vmm->kernel_text), "%s", boot_image_describe(vmm->image));
  return 0;
}

static bool slot_present(void *opaque, unsigned slot) {
  return pci_slot_present(opaque, slot);
}

static int write_firmware(struct vmm *vmm, char *err) {
  const struct firmware_config fw = {
      .cpus = vmm->config->cpus,
      .memory = vmm->config->memory,
      .pci = true,
      .pci_mmio_base = (uint32_t)PCI_MMIO_BASE,
      .pci_mmio_last = (uint32_t)(PCI_MMIO_LIMIT - 1),
      .ecam_base = LAYOUT_ECAM,
      .intx_gsi = pci_intx_gsi,
      .slot_present = slot_present,
      .opaque = vmm->pci,
  };
  uint8_t *low = vmm_ram(vmm, 0, LAYOUT_HIGH);
  if (acpi_build(&fw, low + LAYOUT_ACPI, LAYOUT_ACPI, LAYOUT_ACPI_END - LAYOUT_ACPI) ||
      mptable_build(&fw, low + LAYOUT_MPTABLE, LAYOUT_MPTABLE, LAYOUT_MPTABLE_END - LAYOUT_MPTABLE) ||
      smbios_build(&fw, low + LAYOUT_SMBIOS, LAYOUT_SMBIOS, LAYOUT_SMBIOS_END - LAYOUT_SMBIOS))
    return machine_fail(err, "the firmware tables of a machine with %u CPUs do not fit", vmm->config->cpus);
  return 0;
}

/* Memory is zero on entry. */
int kernel_load(struct vmm *vmm, char *err) {
  char why[BOOT_ERR_LEN];
  if (read_files(vmm, err)) return -1;
  const struct boot_hole ecam = {LAYOUT_ECAM, PCI_ECAM_SIZE};
  const struct boot_request req = {
      .ram = &vmm->ram,
      .cmdline = vmm->config->append,
      .initrd = vmm->initrd.data,
      .initrd_len = vmm->initrd.len,
      .rsdp = LAYOUT_ACPI,
      .holes = &ecam,
      .hole_count = 1,
  };
  if (boot_image_load(vmm->image, &req, &vmm->entry, why))
    return machine_fail(err, "'%s' cannot be booted: %s", vmm->config->kernel, why);
  give_back(vmm);
  return write_firmware(vmm, err);
}

void kernel_close(struct vmm *vmm) {
  boot_image_free(vmm->image);
  vmm->image = NULL;
  drop_contents(&vmm->initrd);
  if (vmm->kernel.open) close(vmm->kernel.fd);
  if (vmm->initrd.open) close(vmm->initrd.fd);
  vmm->kernel.open = vmm->initrd.open = false;
}
