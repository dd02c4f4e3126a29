/**
 * promtool and prometheus for tests: those on PATH, or else Debian's package unpacked into `.cache/prometheus`, which
 * does not change the system. Where there is none, tests fail; none is skipped.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { unpackPackages } from './debian-packages.ts';

const run = promisify(execFile);
const STEP_TIMEOUT_MS = 120_000;
const UNPACKED = join(PACKAGE_ROOT, '.cache', 'prometheus');

type Program = 'promtool' | 'prometheus';

const found = new Map<Program, Promise<string>>();

/** @returns the path of a program. @throws Error that says what to install, if there is none. */
export function prometheusProgram(program: Program): Promise<string> {
  const known = found.get(program) ?? provisioned(program);
  found.set(program, known);
  return known;
}

/**
 * Runs promtool.
 * @returns what it has written.
 * @throws Error with that, if it fails; Error that says what to install, if there is no promtool.
 */
export async function promtool(args: readonly string[], cwd: string): Promise<string> {
  try {
    const { stdout, stderr } = await run(await prometheusProgram('promtool'), args, {
      cwd,
      timeout: STEP_TIMEOUT_MS,
      maxBuffer: 16 << 20,
    });
    return `${stdout}${stderr}`;
  } catch (error) {
    const { stdout = '', stderr = '' } = error as { stdout?: string; stderr?: string };
    throw new Error(`promtool ${args.join(' ')}:\n${stdout}${stderr}`, { cause: error });
  }
}

async function provisioned(program: Program): Promise<string> {
  const onPath = await run(program, ['--version']).then(
    () => true,
    () => false,
  );
  if (onPath) return program;
  const binary = join(UNPACKED, 'usr', 'bin', program);
  try {
    if (!existsSync(binary)) await unpackPackages(UNPACKED, { always: ['prometheus'] });
  } catch (error) {
    throw new Error(
      `These tests need ${program}: none is on PATH, and unpacking the Debian package failed. ` +
        'Install it (apt-get install prometheus; brew install prometheus) and run again.',
      { cause: error },
    );
  }
  return binary;
}
