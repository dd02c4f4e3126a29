/**
 * The repositories that `bench recall` searches: every machine with Debian's Python or this package's dependencies has
 * them.
 */
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { type Chunk, chunkFile } from '../../services/lib/rag/chunk.ts';

const CHUNKING = { chunkLines: 10, chunkStride: 5 } as const;

export interface Repository {
  readonly name: string;
  readonly files: readonly { readonly path: string; readonly text: string }[];
  /** Sorted by path and line. */
  readonly chunks: readonly Chunk[];
}

/** The folder into which Debian installs Python, and the parts of its library that make a repository of medium size. */
const PYTHON_ROOT = '/usr/lib';
const PYTHON_PARTS = /^(asyncio|concurrent|email|http|json|logging|multiprocessing|unittest|urllib|xml)\/(?!.*test)/;
const SOURCE = /\.(py|[cm]?[jt]s)$/;
const MAX_FILE_BYTES = 300_000;
/** Approximate limit on the chunks of one repository: encoding them takes most of the time of the bench. */
const MAX_CHUNKS = 1_200;

const NPM = {
  'grpc-js': '@grpc/grpc-js/src',
  fastify: 'fastify/lib',
  zod: 'zod/src',
  ioredis: 'ioredis/built',
  protobufjs: 'protobufjs/src',
} as const;

/** The repositories that this machine has. */
export async function repositories(): Promise<Repository[]> {
  const found: Repository[] = [];
  const pythons = (await readdir(PYTHON_ROOT).catch(() => [])).filter((name) => /^python3\.\d+$/.test(name));
  const [python] = pythons.sort();
  if (python) found.push(cut(await repository(python, join(PYTHON_ROOT, python), PYTHON_PARTS)));
  for (const [name, folder] of Object.entries(NPM)) {
    const root = join(PACKAGE_ROOT, 'node_modules', folder);
    if (existsSync(root)) found.push(cut(await repository(name, root, /^(?!.*(tests?|generated|\.d\.ts))/)));
  }
  return found;
}

/** The first files of a repository, as many as give about {@link MAX_CHUNKS} chunks. */
function cut({ name, files, chunks }: Repository): Repository {
  const paths = new Set(chunks.slice(0, MAX_CHUNKS).map(({ path }) => path));
  return {
    name,
    files: files.filter(({ path }) => paths.has(path)),
    chunks: chunks.filter(({ path }) => paths.has(path)),
  };
}

/** All sources of the dependencies, for an index larger than that of any single repository here. */
export const everything = () => repository('node_modules', join(PACKAGE_ROOT, 'node_modules'), /^(?!.*\.min\.)/);

async function repository(name: string, root: string, wanted: RegExp): Promise<Repository> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  const paths = entries
    .filter((entry) => entry.isFile() && SOURCE.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
    .filter((path) => wanted.test(path))
    .sort();
  const files: { readonly path: string; readonly text: string }[] = [];
  // One after the other: together they would exceed the open files that a process may have.
  for (const path of paths) files.push({ path, text: await readFile(join(root, path), 'utf8') });
  const kept = files.filter(({ text }) => text.length <= MAX_FILE_BYTES);
  return { name, files: kept, chunks: kept.flatMap(({ path, text }) => chunkFile(path, text, CHUNKING)) };
}
