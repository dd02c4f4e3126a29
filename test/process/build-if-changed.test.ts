/** `npm start` builds what has changed, once, over a small tree whose build writes as the real one does. */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const SCRIPT = join('scripts', 'build-if-changed.mjs');
const BUILD = `
const { appendFileSync, mkdirSync, writeFileSync } = require('node:fs');
for (const folder of ['services/lib/rpc/gen', 'dist/services']) mkdirSync(folder, { recursive: true });
writeFileSync('services/lib/rpc/gen/kv.ts', '');
writeFileSync('dist/services/cli.js', 'console.log(process.argv.slice(2).join())');
appendFileSync('builds', '.');
`;

/** @returns whether the script builds in a tree that has just been cloned, each time that it is asked. */
function clonedTree() {
  const dir = mkdtempSync(join(tmpdir(), 'llavacode-build-'));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  const folders = ['scripts', 'services/lib/rpc', 'bench', 'training', 'test', 'page', 'protos'];
  for (const folder of folders) mkdirSync(join(dir, folder), { recursive: true });
  cpSync(join(PACKAGE_ROOT, SCRIPT), join(dir, SCRIPT));
  const write = (name: string, text = '') => writeFileSync(join(dir, name), text);
  for (const name of ['tsconfig.json', 'package-lock.json']) write(name, '{}');
  write('build.cjs', BUILD);
  write('package.json', JSON.stringify({ name: 'small', version: '1.0.0', scripts: { build: 'node build.cjs' } }));
  const isBuilt = () => {
    rmSync(join(dir, 'builds'), { force: true });
    execFileSync(process.execPath, [SCRIPT], { cwd: dir });
    return existsSync(join(dir, 'builds'));
  };
  /** Changes a file after the last build, whatever the clock says. */
  const change = (name: string) => {
    const later = new Date(Date.now() + 1_000);
    utimesSync(join(dir, name), later, later);
  };
  return { dir, change, isBuilt };
}

test('a tree is built once, and not again as long as nothing changes', () => {
  const { isBuilt } = clonedTree();
  expect([isBuilt(), isBuilt(), isBuilt()]).toEqual([true, false, false]);
});

test.each(['package.json', 'package-lock.json', 'protos', 'page'])('a change of %s is built', (name) => {
  const { isBuilt, change } = clonedTree();
  isBuilt();
  change(name);
  expect(isBuilt()).toBe(true);
});

test('what was deleted from dist is built again, and what is generated is none of the sources', () => {
  const { dir, isBuilt, change } = clonedTree();
  isBuilt();
  rmSync(join(dir, 'dist', 'services', 'cli.js'));
  expect(isBuilt()).toBe(true);
  expect(existsSync(join(dir, 'dist', 'services', 'cli.js'))).toBe(true);
  change('services/lib/rpc/gen/kv.ts');
  expect(isBuilt()).toBe(false);
});

test('the words that are given go to the command that was built, in a tree that is built or not', () => {
  const { dir } = clonedTree();
  const said = () => execFileSync(process.execPath, [SCRIPT, 'up', '--port', '0'], { cwd: dir, encoding: 'utf8' });
  expect([said(), said()]).toEqual(['up,--port,0\n', 'up,--port,0\n']);
});
