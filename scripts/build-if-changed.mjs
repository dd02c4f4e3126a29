// Builds unless `dist/` was made of the sources as they are: a build takes 5 s of CPU time, nearly as much as starting
// the system. Used by `npm start` and `npm run demo`.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const INPUTS = ['services', 'bench', 'training', 'test', 'page', 'protos', 'tsconfig.json', 'package-lock.json'];
/** The build writes it. */
const GENERATED = join('services', 'lib', 'rpc', 'gen');
const STAMP = join('dist', '.built');

/** The time of the last change below a path, in ms. A folder changes with the names in it. */
function changedMs(path) {
  const entry = statSync(path);
  if (path === GENERATED) return 0;
  if (!entry.isDirectory()) return entry.mtimeMs;
  return readdirSync(path).reduce((latest, name) => Math.max(latest, changedMs(join(path, name))), entry.mtimeMs);
}

const started = new Date();
const builtMs = existsSync(STAMP) ? statSync(STAMP).mtimeMs : 0;
if (INPUTS.some((path) => changedMs(path) >= builtMs)) {
  execFileSync('npm', ['run', '--silent', 'build'], { stdio: 'inherit', shell: process.platform === 'win32' });
  writeFileSync(STAMP, '');
  utimesSync(STAMP, started, started); // what is changed while it builds is built at the next start
}
