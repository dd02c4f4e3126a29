/**
 * Debian's packages for tests, unpacked into a folder of ours: the system is not changed. Packages are downloaded by
 * apt-get from where this system's own sources say, so no address of a mirror is written here.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const STEP_TIMEOUT_MS = 300_000;
const OUTPUT_BYTES = 64 << 20;

/** apt-get, with options that hold for every call. */
type Apt = (args: readonly string[], cwd?: string) => Promise<string>;

export interface Wanted {
  /** Packages that are unpacked even if this system has them installed. */
  readonly always: readonly string[];
  /** Packages that are unpacked, with what they depend on, where this system lacks them. */
  readonly missing?: readonly string[];
  /** Lowest major version of a package; where the system's release has an older one, its backports are used. */
  readonly atLeast?: { readonly package: string; readonly major: number };
}

/**
 * Downloads and unpacks packages, and those that they depend on and that this system lacks, into `target`. Several
 * processes may do so at once: the first one wins.
 * @throws Error of the step that failed.
 */
export async function unpackPackages(target: string, wanted: Wanted): Promise<void> {
  await mkdir(dirname(target), { recursive: true });
  const work = await mkdtemp(`${target}-`);
  try {
    await download(work, wanted);
    const root = join(work, 'root');
    for (const file of (await readdir(work)).filter((name) => name.endsWith('.deb'))) {
      await run('dpkg-deb', ['-x', join(work, file), root], { timeout: STEP_TIMEOUT_MS });
    }
    await rename(root, target).catch((error) => {
      if (!existsSync(target)) throw error; // otherwise another process was first
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Folders of shared libraries under an unpacked root, as LD_LIBRARY_PATH wants them. */
export async function libraryFolders(root: string): Promise<string[]> {
  const libraries = join(root, 'usr', 'lib');
  const entries = existsSync(libraries) ? await readdir(libraries, { withFileTypes: true }) : [];
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => join(libraries, name));
}

/** A simulated installation names the packages, and those of their dependencies that are missing here. */
async function download(work: string, wanted: Wanted): Promise<void> {
  const { always, missing = [], atLeast } = wanted;
  const apt = await privateApt(work);
  const names = [...always, ...missing];
  let from: string[] = [];
  if (atLeast && (await candidateMajor(apt, atLeast.package)) < atLeast.major) {
    from = ['--target-release', await addBackports(work, apt)];
    const found = await candidateMajor(apt, atLeast.package, from);
    if (found < atLeast.major) {
      throw new Error(`${atLeast.package} ${atLeast.major} or later is needed; this system's sources have ${found}`);
    }
  }
  const simulated = await apt(['install', '--simulate', '--no-install-recommends', ...from, ...names]);
  // "Inst name (version release [arch])", with "[version]" before it where an older one is installed.
  const exact = new Map(
    [...simulated.matchAll(/^Inst (\S+) (?:\[\S+\] )?\((\S+)/gm)].map(([, name, version]) => [name!, version!]),
  );
  exact.delete('libc6'); // the C library of the running system is the one that its dynamic linker fits
  const installed = always.filter((name) => !exact.has(name));
  await apt(['download', ...from, ...[...exact].map((one) => one.join('=')), ...installed], work);
}

/** apt-get with lists and a cache of its own, and the sources of this system's release alone. */
async function privateApt(work: string): Promise<Apt> {
  const state = join(work, 'apt');
  await mkdir(join(state, 'lists', 'partial'), { recursive: true });
  await mkdir(join(state, 'cache', 'archives', 'partial'), { recursive: true });
  const call = async (options: readonly string[], args: readonly string[], cwd?: string) =>
    (
      await run('apt-get', [...options, ...args], {
        timeout: STEP_TIMEOUT_MS,
        maxBuffer: OUTPUT_BYTES,
        cwd,
        env: { ...process.env, LC_ALL: 'C' },
      })
    ).stdout;
  const sources = join(state, 'sources.list');
  await writeFile(sources, await ownSources((args) => call([], args)));
  const options = [
    ...['-o', `Dir::State::lists=${join(state, 'lists')}`, '-o', `Dir::Cache=${join(state, 'cache')}`],
    ...['-o', `Dir::Etc::sourcelist=${sources}`, '-o', 'Dir::Etc::sourceparts=/dev/null'],
    ...['-o', 'APT::Sandbox::User=', '-o', 'Acquire::Languages=none', '-o', 'Acquire::Retries=3'],
  ];
  const apt: Apt = (args, cwd) => call(options, args, cwd);
  await apt(['update']);
  return apt;
}

/** Lines of a sources.list for the system's release, its updates and its security updates. */
async function ownSources(apt: Apt): Promise<string> {
  const codename = await releaseName();
  const uris = await apt(['update', '--print-uris']);
  const lines = [...uris.matchAll(/^'(.+)\/dists\/(\S+)\/InRelease'/gm)]
    .filter(([, , suite]) => suite === codename || suite!.startsWith(`${codename}-`))
    .map(([, mirror, suite]) => `deb ${mirror} ${suite} main\n`);
  if (lines.length === 0) throw new Error(`apt has no source for ${codename}: add one to /etc/apt/sources.list.d`);
  return lines.join('');
}

/** Adds the release's backports, from the mirror of the release itself. @returns the name of the suite. */
async function addBackports(work: string, apt: Apt): Promise<string> {
  const codename = await releaseName();
  const sources = join(work, 'apt', 'sources.list');
  const lines = await readFile(sources, 'utf8');
  const release = new RegExp(`^deb (\\S+) ${codename} main$`, 'm').exec(lines);
  await writeFile(sources, `${lines}deb ${release?.[1]} ${codename}-backports main\n`);
  await apt(['update']);
  return `${codename}-backports`;
}

async function releaseName(): Promise<string> {
  const text = await readFile('/etc/os-release', 'utf8').catch(() => '');
  const name = /^VERSION_CODENAME="?([\w-]+)/m.exec(text)?.[1];
  if (name === undefined) throw new Error('this system is not a release of Debian: /etc/os-release names none');
  return name;
}

/** Major version of the package that apt-get would download; 0 if there is none. */
async function candidateMajor(apt: Apt, name: string, from: readonly string[] = []): Promise<number> {
  const uris = await apt(['download', '--print-uris', ...from, name]).catch(() => '');
  return Number(/' [^_\s]+_(?:\d+%3a)?(\d+)/.exec(uris)?.[1] ?? 0);
}
