/** Makes authorities and certificates for tests with openssl, in a temporary folder. */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

interface Certificate {
  /** PEM files. */
  readonly cert: string;
  readonly key: string;
}

export interface Authority {
  /** Its own certificate, as a PEM file. */
  readonly ca: string;
  issue(name: string): Promise<Certificate>;
  remove(): Promise<void>;
}

export async function makeAuthority(): Promise<Authority> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-ca-'));
  const file = (name: string) => join(dir, name);
  const [ca, caKey] = [file('ca.pem'), file('ca.key')];
  await run('openssl', ['req', '-x509', ...KEY, '-subj', '/CN=test', '-days', '2', '-keyout', caKey, '-out', ca]);
  return {
    ca,
    async issue(name) {
      const [cert, key] = [file(`${name}.pem`), file(`${name}.key`)];
      const [request, names] = [file(`${name}.csr`), file(`${name}.names`)];
      await writeFile(names, `subjectAltName=DNS:${name},IP:127.0.0.1\n`);
      await run('openssl', ['req', ...KEY, '-subj', `/CN=${name}`, '-keyout', key, '-out', request]);
      const by = ['-CA', ca, '-CAkey', caKey, '-CAcreateserial', '-days', '2', '-extfile', names];
      await run('openssl', ['x509', '-req', '-in', request, '-out', cert, ...by]);
      return { cert, key };
    },
    remove: () => rm(dir, { recursive: true, force: true }),
  };
}
