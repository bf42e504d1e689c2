import { render } from 'preact';

import { App } from './app';
import './parts/foreign';
import './style/base.css';
import './style/parts.css';

const home = document.getElementById('app');
if (home) render(<App />, home);
