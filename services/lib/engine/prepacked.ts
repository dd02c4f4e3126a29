/**
 * Weights in the form that the CPU's kernels read. ONNX Runtime makes it anew for every session, in memory of its own;
 * kept in a file, it is mapped: processes of one machine share the pages, and load in a fraction of the time.
 *
 *     DIR/GRAPH-FINGERPRINT-KEY/model.onnx, model.bin, key.json
 *
 * The form depends on the library's version and on the CPU: both are in the key. A folder appears by renaming, complete
 * or not at all, so that processes that start together do not disturb each other: the first one's stays.
 */
import { createHash } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { ServingError } from '../process/errors.ts';
import { RUNTIME_VERSION, runtime } from './ort-api.ts';
import { cpuInfo, type PrepackedCache, SessionSettings } from './ort-settings.ts';

interface Key {
  /** Version of ONNX Runtime. */
  readonly runtime: string;
  /** What the CPU can do. */
  readonly cpu: string;
}

/** Of a complete folder, as key.json has it. */
interface Contents extends Key {
  /** Sizes of the files, in bytes. */
  readonly files: Readonly<Record<string, number>>;
}

const FILES = ['model.onnx', 'model.bin'] as const;
/**
 * Smaller tensors stay within the graph's own file, and are packed at every load: ONNX Runtime 1.30 puts only larger ones
 * at page boundaries, and the 4- and 8-bit kernels reckon the parts of a packed matrix from aligned addresses. One that
 * lies elsewhere computes NaN.
 */
const SMALLEST_SHARED_BYTES = 1 << 20;
const KERNEL_ALIGNMENT = 64;
/** An entry of the graph's file that says where packed forms lie: `prepacked_0`, a length, `OPERATOR+HASH|offset;length;…`. */
const PACKED_PLACES = /prepacked_\d+[\s\S]{2,3}\w+\+\d+\|((?:\d+;\d+;\d+\|?)+)/g;
/** Making one takes seconds to minutes. */
const ABANDONED_AFTER_MS = 3_600_000;
const hash = (text: string) => createHash('sha256').update(text).digest('hex');

/**
 * Path of the prepacked form of `graph`, made now if it is not there yet; of `graph` itself, with a warning, where that
 * is not possible: it computes the same, with weights of its own.
 */
export async function prepackedGraph(graph: string, cache: PrepackedCache): Promise<string> {
  const { dir, fingerprint, log } = cache;
  const key: Key = { runtime: RUNTIME_VERSION, cpu: cpuFeatures() };
  const family = `${basename(dirname(graph))}-${fingerprint.slice(0, 16)}-`;
  const folder = join(dir, family + hash(JSON.stringify(key)).slice(0, 16));
  try {
    const fault = await faultOf(folder, key);
    if (fault !== undefined) {
      await mkdir(dir, { recursive: true });
      await removeAbandoned(folder);
      const foreign = await foreignFolders(dir, family, basename(folder));
      const startedMs = performance.now();
      const bytes = await make(graph, folder, key);
      const ms = Math.round(performance.now() - startedMs);
      log.info({ folder, bytes, ms, reason: fault, foreign }, 'weights prepacked for this CPU');
    }
    return join(folder, 'model.onnx');
  } catch (error) {
    log.warn({ dir, err: error }, 'weights cannot be kept prepacked: they are not shared with other processes');
    return graph;
  }
}

/** What makes a folder unusable; undefined for a good one. */
async function faultOf(folder: string, key: Key): Promise<string | undefined> {
  const text = await readFile(join(folder, 'key.json'), 'utf8').catch(() => undefined);
  if (text === undefined) return 'not there yet';
  const found = parse(text);
  if (found?.runtime !== key.runtime) return `made by ONNX Runtime ${found?.runtime}`;
  if (found.cpu !== key.cpu) return 'made for another CPU';
  for (const name of FILES) {
    const size = await stat(join(folder, name)).then(
      (file) => file.size,
      () => 0,
    );
    if (size !== found.files[name]) return `${name} has ${size} bytes, not ${found.files[name]}`;
  }
  return undefined;
}

function parse(text: string): Contents | undefined {
  try {
    return JSON.parse(text) as Contents;
  } catch {
    return undefined;
  }
}

/** Folders of the same graph made for another CPU or by another version of the library. */
async function foreignFolders(dir: string, family: string, own: string): Promise<string[]> {
  const names = await readdir(dir);
  return names.filter((name) => name.startsWith(family) && name !== own && !name.includes('.'));
}

/** What processes that were killed while they made `folder` left behind: a gigabyte each, perhaps. */
async function removeAbandoned(folder: string): Promise<void> {
  const names = await readdir(dirname(folder));
  for (const name of names.filter((other) => other.startsWith(`${basename(folder)}.`))) {
    const path = join(dirname(folder), name);
    const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
    if (Date.now() - mtimeMs > ABANDONED_AFTER_MS) await rm(path, { recursive: true, force: true });
  }
}

/** @returns bytes written. */
async function make(graph: string, folder: string, key: Key): Promise<number> {
  const temporary = await mkdtemp(`${folder}.`);
  try {
    await chmod(temporary, 0o755); // processes of other users may map it too
    // The number of threads does not matter to the form.
    using settings = new SessionSettings({ provider: 'cpu', threads: 1 });
    settings.writeGraphTo(join(temporary, FILES[0]));
    settings.set('session.save_external_prepacked_constant_initializers', '1');
    settings.set('session.optimized_model_external_initializers_file_name', FILES[1]);
    const smallest = String(SMALLEST_SHARED_BYTES);
    settings.set('session.optimized_model_external_initializers_min_size_in_bytes', smallest);
    runtime().api.releaseSession(await settings.open(graph));
    await assertAligned(join(temporary, FILES[0]));
    const sizes = await Promise.all(FILES.map(async (name) => (await stat(join(temporary, name))).size));
    const files = Object.fromEntries(FILES.map((name, i) => [name, sizes[i] as number]));
    await writeFile(join(temporary, 'key.json'), JSON.stringify({ ...key, files } satisfies Contents));
    await replace(folder, temporary, key);
    return sizes.reduce((a, b) => a + b, 0);
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/** @throws ServingError runtime_unsupported for a packed matrix that lies where the kernels would misread it. */
async function assertAligned(graph: string): Promise<void> {
  const text = await readFile(graph, 'latin1');
  const entries = [...text.matchAll(PACKED_PLACES)];
  const offsets = entries.flatMap(([, places]) => places!.split('|').map((place) => Number.parseInt(place, 10)));
  const astray = offsets.find((offset) => offset % KERNEL_ALIGNMENT !== 0);
  if (astray === undefined && entries.length === text.split('prepacked_').length - 1) return;
  throw new ServingError(
    'runtime_unsupported',
    astray === undefined
      ? 'ONNX Runtime wrote the places of packed matrices in a way that is not known here'
      : `ONNX Runtime packed a matrix to offset ${astray}, which is not a multiple of ${KERNEL_ALIGNMENT}`,
  );
}

/** Puts `made` in the place of a missing or unusable `folder`; a usable one, which another process made meanwhile, stays. */
async function replace(folder: string, made: string, key: Key): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await rename(made, folder);
      return;
    } catch (error) {
      if ((await faultOf(folder, key)) === undefined) return;
      if (attempt === 3) throw error;
      // Whoever has mapped its files keeps them.
      const away = `${made}.old`;
      await rename(folder, away).catch(() => {});
      await rm(away, { recursive: true, force: true });
    }
  }
}

/** Instruction sets as the kernel lists them; elsewhere the CPU's name. */
function cpuFeatures(): string {
  const listed = /^(?:flags|Features)\s*:\s*(.+)$/m.exec(cpuInfo())?.[1];
  return `${process.platform}-${process.arch} ${listed ?? cpus()[0]?.model ?? 'unknown'}`;
}
