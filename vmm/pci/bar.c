/* Base address registers: assigned at start as firmware would do it, mapped into the machine's buses as the guest moves them.
 *
 * PCI Local Bus 3.0, section 6.2.5.
 */
#include "vmm/pci/pci_priv.h"

#include <errno.h>

#include <linux/pci_regs.h>

#include "vmm/vmm.h"

enum {
  IO_WINDOW_BASE = 0xc000,
  IO_WINDOW_LIMIT = 0x10000,
};

static uint8_t *bar_register(const struct pci_bar *bar) {
  return &bar->dev->config[PCI_BASE_ADDRESS_0 + 4 * bar->index];
}

void pci_bar_init(struct pci_dev *dev, unsigned index, enum pci_bar_type type, uint64_t size) {
  static const uint32_t type_bits[] = {
      [PCI_BAR_IO] = PCI_BASE_ADDRESS_SPACE_IO,
      [PCI_BAR_MEM32] = PCI_BASE_ADDRESS_MEM_TYPE_32,
      [PCI_BAR_MEM64] = PCI_BASE_ADDRESS_MEM_TYPE_64,
  };
  struct pci_bar *bar = &dev->bar[index];
  *bar = (struct pci_bar){.dev = dev, .type = type, .index = index, .size = size};
  unsigned at = PCI_BASE_ADDRESS_0 + 4 * index;
  pci_set32(dev->config + at, type_bits[type]);
  pci_set32(dev->writable + at, (uint32_t) ~(size - 1));
  if (type == PCI_BAR_MEM64) pci_set32(dev->writable + at + 4, (uint32_t)(~(size - 1) >> 32));
  dev->writable[PCI_COMMAND] |= type == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
}

/* ---- assignment ---- */

static int assign(struct pci_host *host, struct pci_bar *bar) {
  bool io = bar->type == PCI_BAR_IO;
  uint64_t next = io ? host->io_next : host->mmio_next;
  uint64_t base = (next + bar->size - 1) & ~(bar->size - 1);
  if (base + bar->size > (io ? (uint64_t)IO_WINDOW_LIMIT : PCI_MMIO_LIMIT)) return -ENOSPC;
  if (io)
    host->io_next = base + bar->size;
  else
    host->mmio_next = base + bar->size;
  bar->initial = base;
  pci_set32(bar_register(bar), pci_get32(bar_register(bar)) | (uint32_t)base);
  bar->dev->config[PCI_COMMAND] |= io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
  return 0;
}

int pci_bars_assign(struct pci_host *host, struct pci_dev *dev) {
  if (!host->mmio_next) host->mmio_next = PCI_MMIO_BASE;
  if (!host->io_next) host->io_next = IO_WINDOW_BASE;
  for (unsigned i = 0; i < PCI_BARS; i++) {
    int r = dev->bar[i].type ? assign(host, &dev->bar[i]) : 0;
    if (r < 0) return r;
  }
  return 0;
}

/* ---- mapping ---- */

static void range_read(void *opaque, uint64_t offset, void *data, unsigned len) {
  struct pci_bar *bar = opaque;
  pci_bar_access(bar->dev, bar->index, offset, data, len, false);
}

static void range_write(void *opaque, uint64_t offset, const void *data, unsigned len) {
  struct pci_bar *bar = opaque;
  uint8_t copy[8];
  memcpy(copy, data, len);
  pci_bar_access(bar->dev, bar->index, offset, copy, len, true);
}

static const struct vmm_range_ops bar_range_ops = {.read = range_read, .write = range_write};

void pci_bar_access(struct pci_dev *dev, unsigned bar, uint64_t offset, void *data, unsigned len, bool write) {
  bool fits =
      bar < PCI_BARS && dev->bar[bar].type && len <= 8 && offset < dev->bar[bar].size && len <= dev->bar[bar].size - offset;
  if (!write) memset(data, fits ? 0 : 0xff, len);
  if (!fits) return;
  if (dev->msix.count && bar == dev->msix.bar)
    msix_access(dev, offset, data, len, write);
  else if (write)
    dev->ops->bar_write(dev, bar, offset, data, len);
  else
    dev->ops->bar_read(dev, bar, offset, data, len);
}

/* Where the registers want the BAR to be; false if decoding is off or the address is no place for a BAR (as while sizing). */
static bool wanted_base(const struct pci_bar *bar, uint64_t *base) {
  uint16_t command = pci_get16(bar->dev->config + PCI_COMMAND);
  uint32_t low = pci_get32(bar_register(bar));
  if (bar->type == PCI_BAR_IO) {
    *base = low & PCI_BASE_ADDRESS_IO_MASK;
    return (command & PCI_COMMAND_IO) && *base && *base + bar->size <= 0x10000;
  }
  *base = low & (uint32_t)PCI_BASE_ADDRESS_MEM_MASK;
  if (bar->type == PCI_BAR_MEM64) *base |= (uint64_t)pci_get32(bar_register(bar) + 4) << 32;
  if (!(command & PCI_COMMAND_MEMORY) || *base < 0x100000 || *base + bar->size < *base) return false;
  /* Interrupt controllers and firmware live in [0xfec00000, 4 GiB): no BAR may cover them. */
  return *base + bar->size <= PCI_MMIO_LIMIT || *base >= 0x100000000ull;
}

static void unmap(struct pci_bar *bar) {
  struct vmm *vmm = bar->dev->host->vmm;
  if (bar->dev->ops->bar_unmapped) bar->dev->ops->bar_unmapped(bar->dev, bar->index, bar->base);
  if (bar->type == PCI_BAR_IO)
    vmm_pio_del(vmm, bar->base);
  else
    vmm_mmio_del(vmm, bar->base);
  bar->mapped = false;
}

/* A range that something else answers for stays unmapped, and is tried again when anything moves. */
static void map(struct pci_bar *bar, uint64_t base) {
  struct vmm *vmm = bar->dev->host->vmm;
  bool io = bar->type == PCI_BAR_IO;
  if (!io && vmm_ram(vmm, base, 1)) return;
  int r = io ? vmm_pio_add(vmm, base, bar->size, &bar_range_ops, bar) : vmm_mmio_add(vmm, base, bar->size, &bar_range_ops, bar);
  if (r < 0) return;
  bar->mapped = true;
  bar->base = base;
  if (bar->dev->ops->bar_mapped) bar->dev->ops->bar_mapped(bar->dev, bar->index, base);
}

static void for_each_bar(struct pci_host *host, void (*fn)(struct pci_bar *bar)) {
  for (unsigned s = 0; s < PCI_SLOTS; s++)
    for (unsigned i = 0; host->slot[s] && i < PCI_BARS; i++)
      if (host->slot[s]->bar[i].type) fn(&host->slot[s]->bar[i]);
}

static void unmap_if_moved(struct pci_bar *bar) {
  uint64_t base;
  if (bar->mapped && (!wanted_base(bar, &base) || base != bar->base)) unmap(bar);
}

static void map_if_wanted(struct pci_bar *bar) {
  uint64_t base;
  if (!bar->mapped && wanted_base(bar, &base)) map(bar, base);
}

void pci_bars_update(struct pci_host *host) {
  for_each_bar(host, unmap_if_moved);
  for_each_bar(host, map_if_wanted);
}

void pci_bars_unmap(struct pci_dev *dev) {
  for (unsigned i = 0; i < PCI_BARS; i++)
    if (dev->bar[i].mapped) unmap(&dev->bar[i]);
}
