#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""patch_rxe.py FOLDER

Gives the source of Linux 6.12's rdma_rxe in FOLDER the registration of DMA-BUFs that the processor
can reach: those of udmabuf and of the system heap. The buffer is mapped, and its pages entered in
the memory region as those of a user's memory are. An instrument for tests: it takes no notice of a
buffer that moves, and knows no device memory.
"""
import re
import sys
from pathlib import Path

INIT = r'''
int rxe_mr_init_dmabuf(u64 offset, u64 length, u64 iova, int fd, int access, struct rxe_mr *mr)
{
	struct dma_buf *buf = dma_buf_get(fd);
	unsigned long first = offset >> PAGE_SHIFT, count, i;
	int err;

	if (IS_ERR(buf))
		return PTR_ERR(buf);
	err = -EINVAL;
	if (!length || length > buf->size || offset > buf->size - length ||
	    ((offset ^ iova) & ~PAGE_MASK))
		goto put;
	rxe_mr_init(access, mr);
	err = dma_buf_vmap_unlocked(buf, &mr->dmabuf_map);
	if (err)
		goto put;
	err = -EOPNOTSUPP;
	if (mr->dmabuf_map.is_iomem)
		goto unmap;
	count = ((offset + length - 1) >> PAGE_SHIFT) - first + 1;
	err = alloc_mr_page_info(mr, count);
	if (err)
		goto unmap;
	for (i = 0; i < count; i++) {
		void *at = mr->dmabuf_map.vaddr + ((first + i) << PAGE_SHIFT);

		mr->page_info[i].page = is_vmalloc_or_module_addr(at) ? vmalloc_to_page(at) :
									virt_to_page(at);
		mr->page_info[i].offset = 0;
	}
	mr->nbuf = count;
	mr->dmabuf = buf;
	mr->ibmr.iova = iova;
	mr->ibmr.length = length;
	mr->ibmr.type = IB_MR_TYPE_USER;
	mr->state = RXE_MR_STATE_VALID;
	return 0;
unmap:
	dma_buf_vunmap_unlocked(buf, &mr->dmabuf_map);
put:
	dma_buf_put(buf);
	return err;
}
'''
RELEASE = r'''
	if (mr->dmabuf) {
		dma_buf_vunmap_unlocked(mr->dmabuf, &mr->dmabuf_map);
		dma_buf_put(mr->dmabuf);
	}
'''


def edit(path, *changes):
    """Each (place, text): puts text before the first match, or behind it where it begins with +."""
    source = path.read_text()
    for place, text in changes:
        found = re.search(place, source, re.M)
        if not found:
            sys.exit(f'{path.name}: no {place!r}; is this the source of Linux 6.12?')
        at = found.end() if text[0] == '+' else found.start()
        source = source[:at] + text.removeprefix('+') + source[at:]
    path.write_text(source)


def second_of(path, name, wanted, parameters, call):
    """A copy of a static function of the driver, with another name, parameters and inner call."""
    source = path.read_text()
    found = re.search(rf'^static struct ib_mr \*{name}\((.*?)\)\n(\{{.*?^\}}\n)', source,
                      re.M | re.S)
    if not found or not re.search(call[0], found.group(2)):
        sys.exit(f'{path.name}: no {name} as it is in Linux 6.12')
    body = re.sub(call[0], call[1], found.group(2))
    copy = f'\nstatic struct ib_mr *{wanted}({parameters})\n{body}'
    path.write_text(source[:found.end()] + copy + source[found.end():])


def main():
    folder = Path(sys.argv[1])
    headers = ''.join(f'#include <linux/{h}.h>\n' for h in ('dma-buf', 'iosys-map', 'vmalloc'))
    edit(folder / 'rxe_mr.c',
         (r'^#include <linux/libnvdimm\.h>\n', '+' + headers),
         (r'^int rxe_mr_init_fast\(', INIT.lstrip() + '\n'),
         (r'^\tib_umem_release\(mr->umem\);\n', '+' + RELEASE.lstrip('\n')))
    edit(folder / 'rxe_verbs.h',
         (r'^#include <linux/interrupt\.h>\n', '+#include <linux/iosys-map.h>\n'),
         (r'^\tstruct ib_umem\s+\*umem;\n(?=\n\tu32\s+lkey;)',
          '+\tstruct dma_buf *dmabuf;\n\tstruct iosys_map dmabuf_map;\n'))
    edit(folder / 'rxe_loc.h',
         (r'^int rxe_mr_init_fast\(',
          'int rxe_mr_init_dmabuf(u64 offset, u64 length, u64 iova, int fd, int access,\n'
          '\t\t       struct rxe_mr *mr);\n'))
    second_of(folder / 'rxe_verbs.c', 'rxe_reg_user_mr', 'rxe_reg_user_mr_dmabuf',
              'struct ib_pd *ibpd, u64 offset, u64 length, u64 iova, int fd, int access,\n'
              '\t\t\t\t\t    struct uverbs_attr_bundle *attrs',
              (r'rxe_mr_init_user\(rxe, start, length, access, mr\)',
               'rxe_mr_init_dmabuf(offset, length, iova, fd, access, mr)'))
    edit(folder / 'rxe_verbs.c',
         (r'^\t\.reg_user_mr = rxe_reg_user_mr,\n',
          '+\t.reg_user_mr_dmabuf = rxe_reg_user_mr_dmabuf,\n'))
    edit(folder / 'rxe.c', (r'^MODULE_LICENSE\(', 'MODULE_IMPORT_NS(DMA_BUF);\n'))


main()
