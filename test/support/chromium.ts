/**
 * A real Chromium for tests, without a window: the one on PATH, or else Debian's package unpacked into
 * `.cache/chromium`, with fonts, which does not change the system and needs no root. Where there is none, tests fail;
 * none is skipped.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type Browser, chromium } from 'playwright-core';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { libraryFolders, unpackPackages } from './debian-packages.ts';

const run = promisify(execFile);
const UNPACKED = join(PACKAGE_ROOT, '.cache', 'chromium');
/** The package's file itself: what it has in usr/bin is a script with the absolute path of an installation. */
const BINARY = join(UNPACKED, 'usr', 'lib', 'chromium', 'chromium-headless-shell');
const ON_PATH = ['chromium', 'chromium-headless-shell', 'chromium-browser', 'google-chrome'];
/** A busy machine takes long to start a browser, in ms. */
const START_MS = 120_000;

/** @throws Error that says what to install, if there is no Chromium. */
export async function launchChromium(): Promise<Browser> {
  const { executablePath, env } = await haveChromium();
  return chromium.launch({
    executablePath,
    env: { ...process.env, ...env },
    timeout: START_MS,
    // Containers that run as root have no sandbox to offer; the pages are our own.
    chromiumSandbox: false,
    args: ['--disable-dev-shm-usage', '--disable-gpu'],
  });
}

interface ChromiumBinary {
  readonly executablePath: string;
  readonly env: Readonly<Record<string, string>>;
}

async function haveChromium(): Promise<ChromiumBinary> {
  for (const name of ON_PATH) {
    const found = await run('sh', ['-c', `command -v ${name}`]).catch(() => undefined);
    if (found) return { executablePath: found.stdout.trim(), env: {} };
  }
  try {
    if (!existsSync(BINARY)) {
      const always = ['chromium-headless-shell', 'fontconfig-config', 'fonts-dejavu-core'];
      await unpackPackages(UNPACKED, { always });
    }
    const folders = await libraryFolders(UNPACKED);
    // A library that Chromium loads has one of its own there.
    const libraries = folders.flatMap((folder) => [folder, join(folder, 'pulseaudio')]);
    return {
      executablePath: BINARY,
      env: { LD_LIBRARY_PATH: libraries.join(':'), FONTCONFIG_FILE: await fontConfiguration() },
    };
  } catch (error) {
    throw new Error(
      'These tests need Chromium: none is on PATH, and unpacking the Debian package failed. ' +
        'Install it (apt-get install chromium; brew install chromium) and run again.',
      { cause: error },
    );
  }
}

/** A configuration that names the unpacked fonts: a bare system has none, and Chromium would draw no text. */
async function fontConfiguration(): Promise<string> {
  const file = join(UNPACKED, 'fonts.conf');
  const fonts = join(UNPACKED, 'usr', 'share', 'fonts');
  await readdir(fonts);
  const text = `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>${fonts}</dir>
  <cachedir>${join(UNPACKED, 'fontconfig')}</cachedir>
  <alias><family>system-ui</family><prefer><family>DejaVu Sans</family></prefer></alias>
  <alias><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
  <alias><family>ui-monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
`;
  await writeFile(file, text);
  return file;
}
