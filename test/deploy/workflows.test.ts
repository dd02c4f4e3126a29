/** The workflows of GitHub and what they call: scripts, versions, permissions; and the changelog of a release. */
import { execFile } from 'node:child_process';
import { access, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, onTestFinished, test } from 'vitest';
import { parse } from 'yaml';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const run = promisify(execFile);
const WORKFLOWS = join(PACKAGE_ROOT, '.github/workflows');

interface Step {
  readonly uses?: string;
  readonly run?: string;
  readonly with?: Readonly<Record<string, string | number | boolean>>;
}
interface Job {
  readonly steps: readonly Step[];
  readonly 'timeout-minutes'?: number;
  readonly permissions?: Readonly<Record<string, string>>;
  readonly strategy?: { readonly matrix: Readonly<Record<string, readonly string[]>> };
}
interface Workflow {
  readonly permissions: Readonly<Record<string, string>>;
  readonly jobs: Readonly<Record<string, Job>>;
}

const read = (path: string) => readFile(join(PACKAGE_ROOT, path), 'utf8');
const workflow = async (name: string) => parse(await readFile(join(WORKFLOWS, name), 'utf8')) as Workflow;
const workflows = async () => Promise.all((await readdir(WORKFLOWS)).map(workflow));
const jobs = async () => (await workflows()).flatMap(({ jobs }) => Object.values(jobs));
const commands = async () => (await jobs()).flatMap(({ steps }) => steps.flatMap((step) => step.run ?? []));

describe('the workflows', () => {
  test('CI and the release run what a developer runs, and nothing is released that has not passed it', async () => {
    const { test: tests } = (await workflow('ci.yml')).jobs;
    expect(tests?.steps.at(-1)).toEqual({ run: '.ci/run' });
    const steps = (await workflow('release.yml')).jobs['package']!.steps.map(({ run }) => run ?? '');
    expect(steps.indexOf('.ci/run')).toBeGreaterThan(-1);
    expect(steps.indexOf('.ci/run')).toBeLessThan(steps.findIndex((text) => text.includes('gh release create')));
    expect(await read('.ci/run')).toContain('npm ci && npm test');
  });

  test('CI tests the oldest version of Node that package.json permits', async () => {
    const { engines } = JSON.parse(await read('package.json')) as { engines: { node: string } };
    const { matrix } = (await workflow('ci.yml')).jobs['test']!.strategy!;
    expect(engines.node).toBe(`>=${matrix['node']![0]}`);
  });

  test('every image of the Dockerfile is built by CI and by the release', async () => {
    const stages = [...(await read('deploy/Dockerfile')).matchAll(/^FROM .* AS (\S+)$/gm)].map(([, name]) => name!);
    const images = stages.filter((name) => !name.startsWith('build')).sort();
    for (const name of ['ci.yml', 'release.yml']) {
      expect([...(await workflow(name)).jobs['image']!.strategy!.matrix['target']!].sort(), name).toEqual(images);
    }
  });

  test('every action is pinned to a commit, whose version is named', async () => {
    for (const name of await readdir(WORKFLOWS)) {
      const lines = (await readFile(join(WORKFLOWS, name), 'utf8')).split('\n').filter((line) => /\buses:/.test(line));
      expect(lines.length).toBeGreaterThan(0);
      expect(lines.filter((line) => !/uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/.test(line))).toEqual([]);
    }
  });

  test('a workflow may read alone unless a job says more, and every job ends', async () => {
    expect((await workflows()).map(({ permissions }) => permissions)).toEqual([
      { contents: 'read' },
      { contents: 'read' },
    ]);
    for (const job of await jobs()) expect(job['timeout-minutes']).toBeGreaterThan(0);
    for (const job of Object.values((await workflow('ci.yml')).jobs)) expect(job.permissions).toBeUndefined();
  });

  test('what is attested is what is released, and every script that is called exists', async () => {
    const { steps } = (await workflow('release.yml')).jobs['package']!;
    const attested = steps.filter(({ uses }) => uses?.startsWith('actions/attest@')).map((step) => step.with!);
    expect(attested.map((inputs) => Object.keys(inputs).sort())).toEqual([
      ['subject-path'],
      ['sbom-path', 'subject-path'],
    ]);
    const { name, scripts } = JSON.parse(await read('package.json')) as { name: string; scripts: object };
    for (const inputs of attested) expect(inputs['subject-path']).toMatch(new RegExp(`^${name}-.*\\.tgz$`));
    const called = (await commands()).flatMap((text) => [...text.matchAll(/npm run (?:--silent )?([\w:]+)/g)]);
    expect(called.map(([, script]) => script!).filter((script) => !(script in scripts))).toEqual([]);
    for (const [, file] of (await commands()).join('\n').matchAll(/node (scripts\/\S+)/g)) {
      await access(join(PACKAGE_ROOT, file!));
    }
  });
});

test('every changeset names this package and a kind of release', async () => {
  const files = (await readdir(join(PACKAGE_ROOT, '.changeset'))).filter(
    (name) => name.endsWith('.md') && name !== 'README.md',
  );
  for (const file of files) {
    expect(await read(`.changeset/${file}`)).toMatch(/^---\n"llavacode-serving": (?:major|minor|patch)\n---\n\n\S/);
  }
});

test('the SBOM lists what is installed for production or in the page, with versions and licences, and nothing else', async () => {
  const { stdout } = await run('npm', ['run', '--silent', 'sbom'], { cwd: PACKAGE_ROOT, maxBuffer: 64 << 20 });
  const { bomFormat, components } = JSON.parse(stdout) as {
    bomFormat: string;
    components: { name: string; version: string; licenses?: object[] }[];
  };
  expect(bomFormat).toBe('CycloneDX');
  const { packages } = JSON.parse(await read('package-lock.json')) as {
    packages: Record<string, { version: string; dev?: boolean; devOptional?: boolean }>;
  };
  const fastify = components.find(({ name }) => name === 'fastify');
  expect(fastify).toMatchObject({ version: packages['node_modules/fastify']!.version, licenses: expect.anything() });
  const development = components.filter(({ name }) => packages[`node_modules/${name}`]?.dev);
  expect(development.filter(({ licenses }) => licenses === undefined)).toEqual([]);
  const { dependencies } = JSON.parse(await read('package.json')) as { dependencies: object };
  expect(components.map(({ name }) => name)).toEqual(expect.arrayContaining(Object.keys(dependencies)));
  // Packages in the page: vite writes their licences beside it.
  const inPage = [...(await read('dist/page/licenses.md')).matchAll(/^## (\S+) - (\S+)/gm)].map(([, name, version]) => {
    return { name, version };
  });
  expect(inPage.length).toBeGreaterThan(1);
  expect(components.map(({ name, version }) => ({ name, version }))).toEqual(expect.arrayContaining(inPage));
  expect(inPage.map(({ name }) => name)).toEqual(expect.arrayContaining(development.map(({ name }) => name)));
});

describe('the changelog of a release', () => {
  async function folder(changelog: string, version = '0.2.0'): Promise<string> {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-changelog-'));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    await writeFile(join(dir, 'CHANGELOG.md'), changelog);
    await writeFile(join(dir, 'package.json'), JSON.stringify({ version }));
    return dir;
  }
  const script = join(PACKAGE_ROOT, 'scripts/changelog.mjs');
  const changelog = (cwd: string, ...words: string[]) => run(process.execPath, [script, ...words], { cwd });
  const OLD = '## 0.1.0\n\nThe first.\n';

  test('what is unreleased becomes the version of package.json, and its notes can be read', async () => {
    const dir = await folder(`# Changelog\n\n## Unreleased\n\n### Added\n\n- A thing.\n\n${OLD}`);
    await changelog(dir, 'release');
    const text = await readFile(join(dir, 'CHANGELOG.md'), 'utf8');
    expect(text).toBe(`# Changelog\n\n## Unreleased\n\n## 0.2.0\n\n### Added\n\n- A thing.\n\n${OLD}`);
    expect((await changelog(dir, 'notes', '0.2.0')).stdout).toBe('### Added\n\n- A thing.\n');
    expect((await changelog(dir, 'notes', '0.1.0')).stdout).toBe('The first.\n');
  });

  test('a release of nothing, one that is there already and notes of an unknown version are refused', async () => {
    const empty = await folder(`## Unreleased\n\n${OLD}`);
    await expect(changelog(empty, 'release')).rejects.toThrow('nothing stands under Unreleased');
    const same = await folder(`## Unreleased\n\n- A thing.\n\n${OLD}`, '0.1.0');
    await expect(changelog(same, 'release')).rejects.toThrow('0.1.0 is there already');
    await expect(changelog(same, 'notes', '9.9.9')).rejects.toThrow('CHANGELOG.md has no version 9.9.9');
  });
});
