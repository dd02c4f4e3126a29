/** `llavacode bench gpu` as a process, on the CPU: every part, its ends, and the folder that it packs. */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { PART_NAMES } from '../../../bench/gpu/command.ts';
import { LIMIT_BYTES } from '../../../bench/gpu/pack.ts';
import type { GpuResult, PartResult } from '../../../bench/gpu/result.ts';
import { readArtifact } from '../../../bench/report/artifact.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';

const run = promisify(execFile);
/** Real engines, and packing, take long on a machine that is busy. */
const LIMIT = 900_000;
const SMALL = ['--provider', 'cpu', '--model', 'tiny', '--precision', 'int4', '--minutes', '10'];

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-gpu-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const cli = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');
const benchGpu = (...words: string[]) => run(process.execPath, [cli, 'bench', 'gpu', ...words], { cwd: dir });

/** Runs the bench into a folder of its own. @returns the parts in its artifact. */
async function partsOf(name: string, ...words: string[]): Promise<readonly PartResult[]> {
  await benchGpu(...words, '--data', join(dir, 'data'), '--out', join(dir, name));
  return recorded(name);
}

async function recorded(name: string): Promise<readonly PartResult[]> {
  return (await readArtifact<GpuResult>(join(dir, name, 'gpu.json'))).result.parts;
}

const figureOf = (parts: readonly PartResult[], what: string | RegExp) =>
  parts.flatMap(({ figures }) => figures).find((figure) => figure.what.match(what))?.value;

describe('bench gpu', () => {
  it('a part that fails says why, the others are measured, and the exit code is 1', { timeout: LIMIT }, async () => {
    const words = ['--model', 'abacus', '--precision', 'int4', '--parts', 'memory,device'];
    const measured = partsOf('failed', '--provider', 'cpu', ...words, '--minutes', '10');
    await expect(measured).rejects.toMatchObject({ code: 1, stdout: expect.stringContaining('**failed**') });
    const parts = await recorded('failed');
    expect(parts.map(({ part, status }) => [part, status])).toEqual([
      ['device', 'done'],
      ['memory', 'failed'],
    ]);
    expect(parts[1]?.reason).toMatch(/--llm abacus .* failed/);
  });

  it('a part whose time is over is cut, and the artifact is there', { timeout: LIMIT }, async () => {
    const parts = await partsOf('cut', '--provider', 'cpu', '--model', 'tiny', '--minutes', '0.00001');
    expect(parts.map(({ part, status }) => [part, status])).toEqual(PART_NAMES.map((part) => [part, 'cut']));
  });

  it('a provider that there is not is refused before anything is measured', async () => {
    await expect(partsOf('unknown', '--provider', 'abacus')).rejects.toMatchObject({
      stderr: expect.stringContaining('--provider (LLAVACODE_PROVIDER) = "abacus"'),
    });
    expect(await readdir(dir)).not.toContain('unknown');
  });
});

describe('the folder that bench gpu packs', () => {
  it('measures every part on a machine that has nothing, and leaves nothing outside', { timeout: LIMIT }, async () => {
    const folder = join(dir, 'packed');
    const { stderr } = await benchGpu('--pack', folder);
    const bytes = Number(/has ([\d.]+) MiB/.exec(stderr)?.[1]) * 2 ** 20;
    expect(bytes).toBeLessThanOrEqual(LIMIT_BYTES);
    expect((await readdir(folder)).sort()).toEqual(['app.tar.br', expect.stringMatching(/^node\.[gx]z$/), 'run.sh']);
    const [home, cwd] = [join(dir, 'home'), join(dir, 'cwd')];
    for (const made of [home, cwd]) await mkdir(made);
    const { stdout } = await run(join(folder, 'run.sh'), SMALL, { cwd, env: { HOME: home, PATH: '/usr/bin:/bin' } });
    expect(await readdir(home)).toEqual([]);
    expect(await readdir(cwd)).toEqual([]);
    const artifact = await readArtifact<GpuResult>(join(folder, 'results', 'gpu.json'));
    const { parts } = artifact.result;
    expect(parts.map(({ part, status, reason }) => [part, status, reason])).toEqual(
      PART_NAMES.map((part) => [part, 'done', undefined]),
    );
    expect(artifact.environment.commit).toMatch(/^[0-9a-f]{12}$/);
    expect(figureOf(parts, 'greedy tokens equal')).toBe('25 of 25');
    expect(figureOf(parts, 'most likely token equal')).toBe('49 of 49');
    expect(figureOf(parts, 'bandwidth')).toBeGreaterThan(0);
    expect(figureOf(parts, 'arithmetic')).toBeGreaterThan(0);
    expect(figureOf(parts, /^step of 2 rows at/)).toBeGreaterThan(0);
    expect(figureOf(parts, /put on the device$/)).toBeGreaterThan(0);
    expect(parts.find(({ part }) => part === 'tables')?.pairs).toHaveLength(12);
    expect(stdout).toContain('#### Table 11: colocated, one token');
  });

  it('is not written over what is there', async () => {
    await expect(benchGpu('--pack', dir)).rejects.toMatchObject({
      stderr: expect.stringContaining('is a folder that is not empty: name a folder or a file that does not exist'),
    });
  });
});
