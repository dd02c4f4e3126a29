/**
 * How the operator page is built: into dist/page, from which the gateway serves it. Everything that it needs is in its
 * own files, and nothing of it is inline, since its policy allows neither another host nor inline code.
 */
import { defineConfig } from 'vite';

export default defineConfig({
  root: import.meta.dirname,
  // Relative, so that a proxy may put the gateway under a path of its own.
  base: './',
  publicDir: false,
  build: {
    outDir: '../dist/page',
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: false,
    target: 'es2022',
    // The licences of what is in the page have to go where it goes.
    license: { fileName: 'licenses.md' },
  },
});
