/** Makes uploads in memory, valid and invalid ones. */
import { gzipSync } from 'node:zlib';
import { zipSync } from 'fflate';
import { type Header, pack } from 'tar-stream';

export type Files = Record<string, string | Uint8Array>;

export type TarEntry = Partial<Header> & { readonly name: string } & { readonly content?: string | Uint8Array };

export async function tarOf(entries: readonly TarEntry[]): Promise<Buffer> {
  const tar = pack();
  for (const { content = '', ...header } of entries) {
    if (header.type === undefined || header.type === 'file') tar.entry(header, Buffer.from(content));
    else tar.entry(header, '');
  }
  tar.finalize();
  const parts: Buffer[] = [];
  for await (const part of tar) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

export const tarOfFiles = (files: Files) => tarOf(Object.entries(files).map(([name, content]) => ({ name, content })));

export const tarGzOfFiles = async (files: Files) => gzipSync(await tarOfFiles(files));

/** A zip with the file modes of Unix. */
export function zipOfFiles(files: Files, modes: Record<string, number> = {}): Buffer {
  const entries = Object.entries(files).map(([name, content]) => {
    const attrs = ((modes[name] ?? 0o100644) << 16) >>> 0;
    return [name, [Buffer.from(content), { os: 3, attrs }]] as const;
  });
  return Buffer.from(zipSync(Object.fromEntries(entries) as unknown as Parameters<typeof zipSync>[0]));
}

export const jsonOfFiles = (files: Record<string, string>) =>
  Buffer.from(JSON.stringify({ files: Object.entries(files).map(([path, content]) => ({ path, content })) }));

/** Bytes in parts, as a network delivers them. */
export async function* inParts(bytes: Uint8Array, size = 1_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}
