/** The machine, the versions and the commit that a run was made on: without them its figures mean nothing. */
import { readFile } from 'node:fs/promises';
import { arch, availableParallelism, cpus, loadavg, platform, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { BUILD_INFO } from '../../services/lib/process/build-info.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

export interface Environment {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGiB: number;
  readonly system: string;
  readonly versions: Readonly<Record<string, string>>;
  /** Commit of the sources, with `+` if they have changes since. */
  readonly commit: string;
  /** Load average over the last minute before the run: what else the machine was doing. */
  readonly loadAverage: number;
}

export async function describeEnvironment(): Promise<Environment> {
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    system: `${platform()} ${release()} ${arch()}`,
    versions: {
      node: process.versions.node,
      'llavacode-serving': await versionOf(join(PACKAGE_ROOT, 'package.json')),
      'onnxruntime-node': await versionOf(join(PACKAGE_ROOT, 'node_modules', 'onnxruntime-node', 'package.json')),
    },
    commit: await commit(),
    loadAverage: Math.round(loadavg()[0]! * 100) / 100,
  };
}

async function versionOf(file: string): Promise<string> {
  try {
    return (JSON.parse(await readFile(file, 'utf8')) as { version: string }).version;
  } catch {
    return 'unknown';
  }
}

async function commit(): Promise<string> {
  if (BUILD_INFO.commit !== undefined) return BUILD_INFO.commit.slice(0, 12);
  const git = (...args: string[]) => execa('git', args, { cwd: PACKAGE_ROOT, reject: false, timeout: 10_000 });
  const [head, changes] = await Promise.all([
    git('rev-parse', '--short=12', 'HEAD'),
    git('status', '--porcelain', '--', 'services', 'protos', 'package-lock.json'),
  ]);
  return head.exitCode === 0 ? `${head.stdout}${changes.stdout === '' ? '' : '+'}` : 'unknown';
}
